"""Contrast with the examples that the teacher finds hard to tell apart, weighted by how hard the student finds them."""

from __future__ import annotations

import math

import torch

from kdc.distill.objectives.shapes import directions, same_batch, same_shape


def dynamic_contrastive(
    student: torch.Tensor, teacher: torch.Tensor, hardest: int, temperature: float = 0.07, focus: float = 1.0
) -> torch.Tensor:
    """-(1 - p_i)^focus log p_i, p_i the share of an example's own teacher feature among those that are hard to tell from it.

    p_i = e^(cos(s_i, t_i) / temperature) / (the same + sum over j in H_i of e^(cos(s_i, t_j) / temperature)), H_i the
    `hardest` other examples of the batch whose teacher features are nearest to t_i. The factor lets examples that the
    student has learned count less as the training goes on.

    Args: student, teacher: embeddings of one shape, [batch, channels]; the length does not count; 2 examples or more.
        hardest: >= 1; all others where the batch has fewer. temperature: > 0. focus: >= 0; 0: all count alike.
    Returns: nats, [batch].
    Raises: ModelError where the shapes differ or the batch has one example.
    Source: Rao et al. 2022, "Dynamic Contrastive Distillation for Image-Text Retrieval", arXiv:2207.01426, as in the
    abstract (the teacher estimates the hard samples, their difficulty weighs the distillation); this contrast between the
    two models' features, and the power of 1 - p, are ours.
    """
    same_shape(student, teacher)
    same_batch(student, teacher, at_least=2)
    s, t = directions(student, 1), directions(teacher, 1)
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    near = (t @ t.T).masked_fill(own, -math.inf).topk(min(hardest, len(s) - 1), dim=1).indices
    kept = own.scatter(1, near, True)
    log_p = (s @ t.T / temperature).masked_fill(~kept, -math.inf).log_softmax(1).diagonal()
    # 1 - p in logarithms, away from 0, where a power has no gradient.
    return -(-torch.expm1(log_p)).clamp_min(1e-12).pow(focus) * log_p
