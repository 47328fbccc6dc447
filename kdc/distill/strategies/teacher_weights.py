"""How much each of several teachers is listened to: learned for each sample, or by how like its task is to this one."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.core.errors import DataError, ModelError
from kdc.core.observe import Note
from kdc.distill.modes import evaluating
from kdc.distill.objectives.distributions import kl, log_probabilities, per_example, wide
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.several import all_answers, label_costs, mean_of_probabilities, several
from kdc.distill.strategy_settings.several import ReinforcedTeachers, SimilarTasks

_DECAY = 0.98  # of the average of what is chosen, which is only told


class ReinforcedSelection(Policy):
    """For each sample and teacher k a coin with chance p = sigmoid(A_k s_k + b_k) says whether the teacher is asked.

    The state s_k holds the teacher's probabilities, how far it is from the label (1 - probability; 0 for an unlabelled
    sample), and its total variation distance from all teachers' mean. The target is the mean of the chosen teachers'
    probabilities (of all, where none is). After the student's step the reward of a sample is minus its label loss minus
    `follow` times the divergence of the student from its target; less its mean over the batch and divided by its
    deviation there, it is the advantage v, and A_k grows by rate * mean over the batch of v (a - p) s_k, which is
    REINFORCE for the coin's outcome a. This costs a forward of the student a step. The label loss alone says too little:
    one step barely moves it by the teacher chosen, and the policy then walks at random. As the reward is how well the
    student follows, a teacher that is right for most classes may stay chosen for one of which it knows nothing.

    Source: Yuan et al. 2021, arXiv:2012.06048: a policy on features of sample and teachers for each instance, rewarded by
    the student, as in the abstract. That it is a coin with a logistic chance for each teacher, and the two parts of the
    reward, are as others read the paper; the state without the student's features, the advantage and the step are ours.
    """

    def __init__(self, settings: ReinforcedTeachers, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student, self.context = settings, settings.kind, student, context
        teachers = several(context, self.kind)
        with torch.no_grad():
            outputs = teachers(*(tensor[:2] for tensor in context.data.calibration.inputs))
        if outputs.dim() != 3:
            raise ModelError(
                f"{self.kind} needs classifiers, outputs [batch, classes]; the teachers give "
                f"{['batch', *outputs.shape[2:]]}",
                do="take combined-teachers for this task",
            )
        memory = nn.Module()
        memory.register_buffer("weight", torch.zeros(len(teachers), outputs.shape[-1] + 2))
        memory.register_buffer("bias", torch.zeros(len(teachers)))
        memory.register_buffer("chosen", torch.full((len(teachers),), 0.5))
        self.trained: nn.Module | None = memory
        self._weight, self._bias = memory.get_buffer("weight"), memory.get_buffer("bias")
        self._chosen = memory.get_buffer("chosen")
        self._state = self._chance = self._action = torch.empty(0)
        self.undivided = True

    def begin(self, epoch: int) -> None:
        if epoch:
            shares = ", ".join(f"teacher {i} {share:.0%}" for i, share in enumerate(self._chosen.tolist()))
            self.context.emit(Note(f"{self.kind} chooses {shares}"))

    def chances(self, state: torch.Tensor) -> torch.Tensor:
        """Of being chosen: states [batch, teachers, features] -> [batch, teachers]."""
        return torch.sigmoid((state * self._weight.to(state.device)).sum(-1) + self._bias.to(state.device))

    def change(self, drawn: Drawn) -> Drawn:
        stack = all_answers(drawn, self.context, self.kind)
        self._state = states(stack, drawn)
        self._chance = self.chances(self._state)
        seed = named_seed(self.context.seed, self.context.step, self.kind, drawn.name)
        coins = torch.rand(self._chance.shape, generator=torch.Generator().manual_seed(seed))
        self._action = (coins.to(self._chance.device) < self._chance).to(self._chance.dtype)
        asked = torch.where(self._action.any(1, keepdim=True), self._action, 1.0)
        target = mean_of_probabilities(stack, asked / asked.sum(1, keepdim=True), self.settings.temperature)
        return dataclasses.replace(drawn, teacher=target)

    @torch.no_grad()
    def after(self, batch: Batch) -> None:
        advantage = advantages(self._rewards(batch))
        slope = advantage[:, None] * (self._action - self._chance)  # of log pi by the coin's logit, times the advantage
        self._weight.add_(self.settings.rate * (slope[:, :, None] * self._state).mean(0).to(self._weight.device))
        self._bias.add_(self.settings.rate * slope.mean(0).to(self._bias.device))
        self._chosen.lerp_(self._chance.mean(0).to(self._chosen.device), 1 - _DECAY)

    def _rewards(self, batch: Batch) -> torch.Tensor:
        with evaluating(self.student):
            outputs = wide(self.student(*batch.inputs))
        temperature = self.settings.temperature
        log_target, log_answer = (log_probabilities(wide(x), temperature) for x in (batch.teacher, outputs))
        known = batch.labels >= 0
        cost = known * self.context.task.loss(outputs, batch.labels.clamp_min(0))
        if batch.others is not None and batch.share is not None:
            cost = batch.share * cost + (1 - batch.share) * self.context.task.loss(outputs, batch.others.clamp_min(0))
        return -cost - self.settings.follow * per_example(kl(log_target, log_answer))


class TaskSimilarity(Policy):
    """The teachers' mean, weighted by the similarity e_k of their tasks to this one: w_k = e_k^power / sum_j e_j^power.

    The similarity is PARC of the teacher's outputs on labelled calibration samples, 0 where it is negative; it is taken
    once, when the training begins.
    Source: DistillWeighted, Borup et al. 2023, arXiv:2304.12314, as in the abstract (teachers weighted by the similarity
    of their tasks); PARC, Bolya et al. 2021, "Scalable diverse model selection for accessible transfer learning". That
    outputs stand for features, and the power, are ours: the official code is not public.
    """

    def __init__(self, settings: SimilarTasks, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.context = settings, settings.kind, context
        teachers = several(context, self.kind)
        split = context.data.calibration
        known = (split.labels >= 0).nonzero().flatten()[: settings.samples]
        probe = split[known]
        classes = len(set(probe.labels.flatten().tolist()))
        if classes < 2 or len(probe) < 8:
            raise DataError(
                f"{self.kind}: the calibration split has {len(probe)} labelled samples of {classes} classes; tasks are "
                "compared on 8 samples or more, of two classes or more",
                do=f"label more calibration samples, or take another strategy than {self.kind}",
            )
        with torch.no_grad():
            outputs = teachers(*probe.inputs)
        similar = torch.tensor([max(0.0, parc(outputs[:, k], probe.labels)) for k in range(len(teachers))])
        if not similar.any():
            similar = torch.ones_like(similar)  # none of them knows this task: no reason to prefer one
        self.weights = similar**settings.power / (similar**settings.power).sum()
        shares = ", ".join(f"teacher {i} {share:.0%}" for i, share in enumerate(self.weights.tolist()))
        context.emit(Note(f"{self.kind} weighs {shares}"))

    def change(self, drawn: Drawn) -> Drawn:
        stack = all_answers(drawn, self.context, self.kind)
        weights = self.weights.to(stack.device).reshape(1, -1, *[1] * (stack.dim() - 3)).expand(stack.shape[:-1])
        return dataclasses.replace(drawn, teacher=mean_of_probabilities(stack, weights, self.settings.temperature))


def states(stack: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """What the policy sees of each teacher: logits [batch, teachers, classes] -> [batch, teachers, classes + 2], 0 to 1."""
    p = torch.softmax(wide(stack), -1)
    unlike_label = 1 - torch.exp(-label_costs(stack, drawn))
    unlike_others = (p - p.mean(1, keepdim=True)).abs().sum(-1) / 2
    return torch.cat([p, unlike_label.unsqueeze(-1), unlike_others.unsqueeze(-1)], -1)


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards less their mean, over their standard deviation, [batch] -> [batch]; 0 where all are equal."""
    centred = rewards - rewards.mean()
    return centred / centred.square().mean().sqrt().clamp_min(1e-6)


def parc(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Spearman's correlation, over pairs of samples, of 1 - Pearson's correlation of features and of one-hot labels.

    Args: features: [n, ...]. labels: [n], of two classes or more.
    Returns: -1 to 1; high where samples of one class have like features.
    Source: Bolya et al. 2021, arXiv:2111.06977, of which this is the measure without its dimensionality reduction.
    """
    upper = torch.triu_indices(len(labels), len(labels), 1)
    one_hot = nn.functional.one_hot(labels)
    pairs = [_distances(x.double())[upper[0], upper[1]] for x in (features.flatten(1), one_hot)]
    a, b = (_ranks(values) for values in pairs)
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / size) if size > 0 else 0.0


def _distances(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    distances: torch.Tensor = 1 - unit @ unit.T
    return distances


def _ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 0, equal values sharing the mean of theirs; values that differ by rounding alone count as equal."""
    _, place, count = torch.unique(values.round(decimals=9), return_inverse=True, return_counts=True)
    ranks: torch.Tensor = (count.cumsum(0).double() - (count + 1) / 2)[place]
    return ranks
