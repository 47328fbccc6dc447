"""Each class by itself, through a sigmoid: the losses at the level of logits, where each class has an optimum of its own."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from kdc.distill.objectives.distributions import matched, per_example


def binary(student: torch.Tensor, teacher: torch.Tensor, focus: float) -> torch.Tensor:
    """Sum over classes of |σ(t) - σ(s)|^focus times the binary cross-entropy of σ(s) from σ(t).

    A softmax leaves out how high the scores are: any common shift fits. Here each class has its own optimum, s = t. The
    factor takes away the many positions where both say "background".

    Args: student, teacher: logits, [batch, ..., classes]. focus: >= 1.
    Returns: nats, [batch], the mean over the dimensions between (positions); 0 where student = teacher, else above 0.
    Raises: ModelError where the shapes differ.
    Source: Yang et al. 2023 (BCKD), arXiv:2308.14286, the classification loss; that the factor has a gradient too is
    as in the official code (TinyTigerPan/BCKD, `novel_kd_loss`), which sums over positions and divides by a count of them.
    """
    student, teacher = matched(student, teacher)
    target = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return per_example(((target - student.sigmoid()).abs().pow(focus) * entropy).sum(-1))


def binary_norm(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """BinaryKL-Norm: sum over classes of KL(1/2 || σ((s - t) / temperature)), as coins, times temperature².

    That is temperature² times the sum of log cosh((s - t) / (2 temperature)): an eighth of the squared difference where
    it is small, and no more than linear where it is large.

    Args: student, teacher: logits s and t, [batch, ..., classes]. temperature: > 0.
    Returns: nats, [batch]; the mean over the dimensions between, if any. 0 where student = teacher, else above 0.
    Raises: ModelError where the shapes differ.
    Source: Yang et al. 2024 (Dual-Head KD), arXiv:2411.08937, as in its official code (penghui-yang/DHKD,
    `BinaryKLNorm`, temperature 2), which clamps the probabilities where the logarithm is exact here.
    """
    student, teacher = matched(student, teacher)
    half = ((student - teacher) / (2 * temperature)).abs()
    return per_example((half + F.softplus(-2 * half) - math.log(2)).sum(-1)) * temperature**2
