"""Objectives on the model's outputs."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def soft_targets(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's softened distribution from the teacher's, times temperature².

    The factor keeps the gradient's size independent of the temperature, so that the weight beside the label loss need
    not be found again.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0.
    Returns: nats, [batch]; the mean over the dimensions between, if any.
    Raises: ValueError where the shapes differ.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    log_p = F.log_softmax(teacher / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return divergence.flatten(1).mean(1) * temperature**2 if divergence.dim() > 1 else divergence * temperature**2
