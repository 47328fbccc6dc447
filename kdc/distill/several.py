"""Several teachers as one model, and their answers made into one target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.objectives.distributions import wide
from kdc.distill.policy import Drawn


class Several(nn.Module):
    """Teachers that take the same inputs; their outputs [batch, ..., classes] stacked: [batch, teachers, ..., classes].

    It is in evaluation mode from the beginning, and so are the teachers.
    Raises: ModelError for fewer than two teachers; in `forward`, where their outputs differ in shape.
    """

    def __init__(self, teachers: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(teachers) < 2:
            raise ModelError(
                f"expected two teachers or more, found {len(teachers)}", do="name the others in training.teachers"
            )
        self.teachers = nn.ModuleList(teachers)
        self.eval()

    def __len__(self) -> int:
        return len(self.teachers)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        outputs = [teacher(*inputs) for teacher in self.teachers]
        if len({tuple(output.shape) for output in outputs}) > 1:
            found = ", ".join(f"teacher {i} {['batch', *output.shape[1:]]}" for i, output in enumerate(outputs))
            raise ModelError(
                f"the teachers' outputs differ in shape: {found}; their answers are compared class by class",
                do="give all teachers the same classes in the same order, or leave the others out of training.teachers",
            )
        return torch.stack(outputs, 1)


def several(context: Context, kind: str) -> Several:
    """The context's teachers. Raises: ModelError where there is one alone."""
    teacher = context.teacher
    if not isinstance(teacher, Several):
        raise ModelError(
            f"{kind} needs several teachers; there is one, {type(teacher).__name__}",
            do=f"name others in training.teachers, or leave {kind} out of training.strategies",
        )
    return teacher


@torch.no_grad()
def answers(drawn: Drawn, context: Context) -> torch.Tensor:
    """The teacher's outputs for these very inputs: those drawn along, or asked for now."""
    if drawn.teacher is not None:
        return drawn.teacher
    outputs: torch.Tensor = context.teacher(*drawn.inputs).float()
    return outputs


def all_answers(drawn: Drawn, context: Context, kind: str) -> torch.Tensor:
    """`answers` of several teachers, [batch, teachers, ..., classes].

    Raises: ModelError where another strategy has made one target of them already.
    """
    stack = answers(drawn, context)
    count = len(several(context, kind))
    if stack.dim() < 3 or stack.shape[1] != count:
        raise ModelError(
            f"{kind} needs the answers of each of {count} teachers, [batch, {count}, ..., classes]; found "
            f"{list(stack.shape)}: a strategy before it has made one target of them",
            do=f"keep one strategy of training.strategies that combines teachers: {kind} or the other",
        )
    return stack


def mean_of_probabilities(
    logits: torch.Tensor, weights: torch.Tensor | None = None, temperature: float = 1.0
) -> torch.Tensor:
    """T log of the sum over teachers of w_k softmax(l_k / T): logits whose softmax at T is the teachers' mean at T.

    Args: logits: l, [batch, teachers, ..., classes]. weights: w, [batch, teachers, ...], sum 1 over teachers; None: equal.
        temperature: T > 0, that of the objective which reads the result.
    Returns: [batch, ..., classes]; at T = 1 they are log-probabilities.
    Source: the averaged softmax of MEAL V2, Shen & Savvides 2020, arXiv:2009.08453, and its official code; weights
        and T are ours.
    """
    log_p = torch.log_softmax(wide(logits) / temperature, -1)
    log_w = _equal(logits) if weights is None else weights
    return temperature * torch.logsumexp(log_p + log_w.log().unsqueeze(-1), 1)


def mean_of_logits(logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The sum over teachers of w_k l_k: [batch, teachers, ..., classes] -> [batch, ..., classes].

    In probabilities this is the geometric mean: a class that one teacher rules out stays out.
    """
    chosen = _equal(logits) if weights is None else weights
    return (wide(logits) * chosen.unsqueeze(-1)).sum(1)


def label_costs(logits: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """Each teacher's cross-entropy with the labels, in nats: [batch, teachers, ..., classes] -> [batch, teachers, ...].

    A mixed sample's is that of both labels in their shares; an unlabelled one's is 0 for every teacher.
    """
    log_p = torch.log_softmax(wide(logits), -1)

    def costs(labels: torch.Tensor) -> torch.Tensor:
        at = labels.clamp_min(0).unsqueeze(1).unsqueeze(-1).expand(*log_p.shape[:-1], 1)
        return -log_p.gather(-1, at).squeeze(-1) * (labels >= 0).unsqueeze(1)

    values = costs(drawn.labels)
    if drawn.others is not None and drawn.share is not None:
        share = drawn.share.reshape(-1, *[1] * (values.dim() - 1)).to(values.dtype)
        values = share * values + (1 - share) * costs(drawn.others)
    return values


def by_confidence(costs: torch.Tensor) -> torch.Tensor:
    """w_k = (1 - exp(c_k) / sum_j exp(c_j)) / (K - 1): less weight for a teacher that fits the label worse.

    Args: costs: c, the teachers' cross-entropies with the labels, [batch, K, ...].
    Returns: [batch, K, ...], sum 1 over teachers; equal where the costs are.
    Source: CA-MKD, Zhang et al. 2022, arXiv:2201.00007, and its official code (which divides by K once more).
    """
    return (1 - torch.softmax(costs, 1)) / (costs.shape[1] - 1)


def by_entropy(logits: torch.Tensor) -> torch.Tensor:
    """w_k = (1 - h_k / sum_j h_j) / (K - 1), where h_k is the entropy of teacher k: the surer weigh more; no labels.

    Args: logits: [batch, K, ..., classes]. Returns: [batch, K, ...], sum 1 over teachers; equal where all are certain.
    Source: EBKD, Kwon et al. 2020, ICASSP, "Adaptive knowledge distillation based on entropy", as in the code of CA-MKD.
    """
    log_p = torch.log_softmax(wide(logits), -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    total = entropy.sum(1, keepdim=True)
    shares = torch.where(total > 0, entropy / total.clamp_min(torch.finfo(total.dtype).tiny), 1 / logits.shape[1])
    return (1 - shares) / (logits.shape[1] - 1)


def _equal(logits: torch.Tensor) -> torch.Tensor:
    return torch.full(logits.shape[:-1], 1 / logits.shape[1], dtype=wide(logits).dtype, device=logits.device)
