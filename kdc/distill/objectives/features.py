"""Objectives on inner features."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two features, each first scaled to unit root mean square per example.

    FitNets compares raw features; the scaling makes one weight serve layers whose features differ in size by orders of
    magnitude.

    Args: student, teacher: features of one shape, [batch, ...].
    Returns: [batch], 0 (same direction) to 4 (opposite).
    Raises: ValueError where the shapes differ.
    Source: Romero et al. 2015, arXiv:1412.6550, equation 3.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student's features are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    a, b = student.flatten(1), teacher.flatten(1)
    size = a.shape[1] ** 0.5
    difference: torch.Tensor = size * (F.normalize(a, dim=1) - F.normalize(b, dim=1))
    return torch.mean(difference.square(), 1)
