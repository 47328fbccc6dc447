"""Targets that are not the teacher as it stands: one on the way to it (TAID), one shifted as it was (Delta-KD)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kdc.distill.objectives.distributions import kl, log_probabilities, matched, per_example

_EPSILON = 1e-15


@dataclass(frozen=True)
class Interpolation:
    """How far the target is on its way. `share` is the teacher's, `previous` the last step's mean loss, if any."""

    share: float
    momentum: float = 0.0
    previous: float = math.inf

    def advanced(
        self, loss: float, progress: float, start: float, end: float, rate: float, decay: float
    ) -> Interpolation:
        """After a step whose mean loss was `loss`, when `progress` (0 to 1) of the training is over.

        The share grows by rate · sigmoid(momentum) · (1 - share), where the momentum averages the loss's relative
        decrease: faster while the student gains. It is never below the straight line from `start` to `end`, nor above
        `end`, and never falls.
        Source: Shing et al. 2025 (TAID), arXiv:2501.16937, as in its official code (SakanaAI/TAID), where the first step
        only sets `previous`.
        """
        if math.isinf(self.previous):
            return Interpolation(self.share, self.momentum, loss)
        momentum = decay * self.momentum + (1 - decay) * (self.previous - loss) / (self.previous + _EPSILON)
        step = rate * (1 - self.share) / (1 + math.exp(-max(-500.0, momentum)))
        line = start + (end - start) * progress
        return Interpolation(max(self.share, min(end, max(line, self.share + step))), momentum, loss)


def taid(student: torch.Tensor, teacher: torch.Tensor, share: float) -> torch.Tensor:
    """KL(p_t || q), where p_t is the softmax of (1 - share) s + share t, and no gradient goes through this s.

    Args: student, teacher: logits s and t, [batch, ..., classes]. share: the teacher's, 0 (the student itself, loss 0) to
        1 (Hinton's divergence at temperature 1).
    Returns: nats, [batch]; the mean over the dimensions between, if any.
    Raises: ModelError where the shapes differ.
    Source: Shing et al. 2025 (TAID), arXiv:2501.16937, as in its official code, but that the code leaves out the
    entropy of p_t, which has no gradient: `Interpolation` sees the divergence, which is our choice.
    """
    student, teacher = matched(student, teacher)
    log_target = log_probabilities((1 - share) * student.detach() + share * teacher, 1.0)
    return per_example(kl(log_target, log_probabilities(student, 1.0)))


def delta_kd(
    student: torch.Tensor,
    student_base: torch.Tensor,
    teacher: torch.Tensor,
    teacher_base: torch.Tensor,
    strength: float,
) -> torch.Tensor:
    """KL(p' || q), where log p' = log q_base + strength (log p - log p_base), normalised.

    The student is to be shifted from its own beginnings as fine-tuning shifted the teacher from its.

    Args: student, student_base, teacher, teacher_base: logits, [batch, ..., classes]. strength: 1 for the whole shift.
    Returns: nats, [batch]; the mean over the dimensions between, if any. Equal bases, strength 1: Hinton's divergence.
    Raises: ModelError where the shapes differ.
    Source: Cao et al. 2025 (Delta-KD), arXiv:2509.14526, as in the abstract (the target keeps the shift between
    distributions); that the shift is taken in logarithms and then normalised is our reading.
    """
    student, teacher = matched(student, teacher)
    own, base = matched(student_base, teacher_base)
    matched(student, own)
    shift = log_probabilities(teacher, 1.0) - log_probabilities(base, 1.0)
    log_target = log_probabilities(log_probabilities(own, 1.0) + strength * shift, 1.0)
    return per_example(kl(log_target, log_probabilities(student, 1.0)))
