"""The first objective on the model's outputs; its descendants stand in the files beside this one."""

from __future__ import annotations

import torch

from kdc.distill.objectives.distributions import kl, log_probabilities, matched, per_example


def soft_targets(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's softened distribution from the teacher's, times temperature².

    The factor keeps the gradient's size independent of the temperature, so that the weight beside the label loss need
    not be found again.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0.
    Returns: nats, [batch]; the mean over the dimensions between, if any.
    Raises: ModelError where the shapes differ.
    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    student, teacher = matched(student, teacher)
    log_p, log_q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    return per_example(kl(log_p, log_q)) * temperature**2
