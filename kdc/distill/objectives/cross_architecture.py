"""Objectives between unlike families, whose inner features have no common space but that of the classes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.objectives.shapes import same_shape, wide


def target_enhanced(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, gamma: float = 1.0, temperature: float = 1.0
) -> torch.Tensor:
    """OFA-KD: cross-entropy with the teacher's distribution, the label's own share of which is enhanced by gamma.

    -sum over classes c of ((p_c + [c = label])^gamma - [c = label]) log q_c, p and q the softmax of the teacher's and the
    student's logits over temperature. gamma = 1 is plain soft cross-entropy; a larger one lets a teacher that is sure of
    the label count more, and its other classes less.

    Args: student: logits of a branch on an inner feature, or of the model; teacher: both [batch, classes].
        labels: [batch], class numbers. gamma, temperature: > 0.
    Returns: nats, [batch]; at gamma 1 at least the teacher's entropy.
    Raises: ModelError where the shapes differ, or labels are not one class an example.
    Source: Hao et al. 2023, "One-for-All", arXiv:2310.19444; as in the authors' code (Hao840/OFAKD,
    `ofa_loss`), which raises every class to gamma.
    """
    same_shape(student, teacher)
    if labels.shape != student.shape[:1] or labels.is_floating_point():
        raise ModelError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}: expected {tuple(student.shape[:1])} class numbers",
            do="use this objective for classification only",
        )
    p = F.softmax(wide(teacher) / temperature, 1)
    log_q = F.log_softmax(wide(student) / temperature, 1)
    label = F.one_hot(labels, student.shape[1]).to(p.dtype)
    return -(((p + label).pow(gamma) - label) * log_q).sum(1)
