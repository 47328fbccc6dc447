"""The divergence from the teacher in parts, each with a weight of its own: the target class and the other classes."""

from __future__ import annotations

import torch

from kdc.distill.objectives.distributions import kl, labelled, log_probabilities, matched, per_example


def dkd(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, alpha: float, beta: float
) -> torch.Tensor:
    """alpha KL(b^T || b^S) + beta KL(p̂^T || p̂^S), times temperature².

    b is the target class against all others together, p̂ the distribution over the others alone. Hinton's divergence is
    the first plus (1 - p_t^T) times the second: a teacher that is sure of the target hides what it knows of the others.

    Args: student, teacher: logits, [batch, ..., classes]. labels: class numbers, [batch, ...]. temperature: > 0.
        alpha, beta: weights of target and of the others, >= 0.
    Returns: nats, [batch]; the mean over the dimensions between, if any. 0 where the distributions are equal.
    Raises: ModelError where the shapes do not fit.
    Source: Zhao et al. 2022 (DKD), arXiv:2203.08679, as in its official code (megvii-research/mdistiller, `dkd_loss`;
    its defaults: alpha 1, beta 8, temperature 4).
    """
    student, teacher = matched(student, teacher)
    target = labelled(student, labels)
    of_target, of_others = (
        kl(part_t, part_s)
        for part_t, part_s in zip(
            _parts(teacher, target, temperature), _parts(student, target, temperature), strict=True
        )
    )
    return per_example(alpha * of_target + beta * of_others) * temperature**2


def _parts(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of (target, others together), [..., 2], and of each other class among the others, [..., classes - 1]."""
    logs = log_probabilities(logits, temperature)
    others = torch.ones_like(logs, dtype=torch.bool).scatter(-1, target, False)
    # Taken out rather than set to -inf: the difference of two infinities is not a number.
    rest = logs[others].view(*logs.shape[:-1], logs.shape[-1] - 1)
    together = torch.logsumexp(rest, dim=-1, keepdim=True)
    return torch.cat([logs.gather(-1, target), together], dim=-1), rest - together
