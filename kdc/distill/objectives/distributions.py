"""Logits as distributions over classes: the check, the softmax and the mean that objectives on outputs share."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.kinds import across_classes


def matched(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both logits, in float32 where they came in half precision: sums of exponentials overflow and round there.

    Raises: ModelError where the shapes differ.
    """
    if teacher.dim() == student.dim() + 1 and teacher.shape[0] == student.shape[0]:
        raise ModelError(
            f"the student's logits are {list(student.shape)}, those of the teachers {list(teacher.shape)}: an objective "
            f"on outputs needs one target, and {teacher.shape[1]} teachers give as many",
            do="add a strategy that makes one of them, such as combined-teachers, to training.strategies",
        )
    if student.shape != teacher.shape:
        raise ModelError(
            f"the student's logits are {list(student.shape)}, the teacher's {list(teacher.shape)}; "
            "an objective that compares class with class needs one shape",
            do="give the student's head as many classes as the teacher's, or take an objective that does without: "
            + ", ".join(across_classes()),
        )
    return wide(student), wide(teacher)


def labelled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The labels, [batch, ...], as indices into the logits' last dimension, [batch, ..., 1].

    Raises: ModelError where there is not one class number for each row of logits.
    """
    if labels.shape != logits.shape[:-1]:
        raise ModelError(
            f"the labels are {list(labels.shape)}, the logits {list(logits.shape)}; "
            f"expected one class number for each row of logits, {list(logits.shape[:-1])}",
            do="give one class number for each output, or take an objective without labels",
        )
    return labels.long().unsqueeze(-1)


def wide(logits: torch.Tensor) -> torch.Tensor:
    """The logits in float32, or in float64 where they are so already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-softmax of logits / temperature over the last dimension."""
    return F.log_softmax(logits / temperature, dim=-1)


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats over the last dimension, [..., classes] -> [...]; finite as long as the logarithms are."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def per_example(values: torch.Tensor) -> torch.Tensor:
    """[batch, ...] -> [batch], the mean over the dimensions between batch and classes, if any."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values
