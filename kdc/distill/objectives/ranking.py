"""What the teacher's order of the classes says: its whole ranking, or its top few classes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.distill.objectives.distributions import labelled, matched, per_example

_LEAST = 1e-2  # logits shorter than this have no direction


def plackett_luce(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Sum over ranks k of p(c_k) (log of the sum over l >= k of e^(s(c_l)) - s(c_k)).

    c_1 is the label, c_2, c_3, ... the other classes from the teacher's likeliest down; p is the teacher's softmax at
    `temperature`, s the student's logits. It is the likelihood of that order under Plackett and Luce's model, where
    classes are drawn one by one, each draw weighted by the teacher's confidence in it. The first draw is cross-entropy,
    so that no label loss is needed beside it. Convex in the student's logits.

    Args: student, teacher: logits, [batch, ..., classes]. labels: class numbers, [batch, ...]. temperature: > 0.
    Returns: nats, [batch]; 0 or more, and 0 only in the limit of an infinitely sure student.
    Raises: ModelError where the shapes do not fit.
    Source: Bassam et al. 2025 (PLD), arXiv:2506.12542, as in the abstract (Plackett-Luce, the label first and the rest in
    the teacher's order, the teacher's confidence as weights); no code of the authors was found, and temperature 1 is ours.
    """
    student, teacher = matched(student, teacher)
    target = labelled(student, labels)
    order = teacher.scatter(-1, target, torch.inf).argsort(dim=-1, descending=True, stable=True)
    weights = (teacher / temperature).softmax(-1).gather(-1, order)
    scores = student.gather(-1, order)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)  # log of the sum over this rank and all below it
    return per_example((weights * (left - scores)).sum(-1))


def top_scaled(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    top: int,
    scale: float,
    alpha: float,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    """The decoupled cosine loss on the teacher's scaled logits, plus a contrast of each example with the batch.

    The teacher's `top` largest logits and the label's are amplified (`amplified`). Then the cosine between student and
    teacher is taken by itself over the classes of the `top` largest logits, of the `top` smallest and of the rest:
    alpha (1 - cos) + beta (1 - cos) + (1 - cos). The contrast is cross-entropy, both ways, that picks an example's own
    teacher among those of the batch by the inner product of their unit vectors over `temperature`.

    Args: student, teacher: logits, [batch, ..., classes]. labels: class numbers, [batch, ...]. top: classes in a group,
        1 to classes / 2. scale: how much the largest logit is amplified, >= 0. alpha, beta: weights of the largest and
        of the smallest. temperature: > 0, of the contrast.
    Returns: [batch]; the mean over the dimensions between, if any, where every position counts as an example.
    Raises: ModelError where the shapes do not fit.
    Source: Wang & Zhou 2025 (TopKD), arXiv:2508.04539, read in a summary: scaling, three groups, weights and contrast
    are the paper's. The scaling factors by rank, and unit vectors in the contrast (whole logits make its size that of
    their squares), are our choice; constants are moved so that agreement gives 0.
    """
    student, teacher = matched(student, teacher)
    target = labelled(student, labels)
    top = max(1, min(top, student.shape[-1] // 2))
    scaled = amplified(teacher, target, top, scale)
    order = teacher.argsort(dim=-1, descending=True, stable=True)
    sorted_s, sorted_t = student.gather(-1, order), scaled.gather(-1, order)
    classes = student.shape[-1]
    loss = torch.zeros_like(student[..., 0])
    for weight, first, last in ((alpha, 0, top), (beta, classes - top, classes), (1.0, top, classes - top)):
        if last > first:
            part_s, part_t = sorted_s[..., first:last], sorted_t[..., first:last]
            loss = loss + weight * (1 - F.cosine_similarity(part_s, part_t, dim=-1, eps=_LEAST))
    return per_example(loss + _contrast(student, scaled, temperature))


def amplified(teacher: torch.Tensor, target: torch.Tensor, top: int, scale: float) -> torch.Tensor:
    """The teacher's logits with its `top` largest and the label's made larger: z w + d.

    w falls from 1 + scale at rank 1 to 1 + scale / top at rank `top`; a label outside of these, which the teacher got
    wrong, has the largest. d is `scale` times the distance between the means of the `top` largest and of the rest.

    Args: teacher: logits, [..., classes]. target: class numbers, [..., 1]. top: 1 to classes - 1. scale: >= 0.
    Returns: logits, [..., classes].
    """
    values, places = teacher.topk(top, dim=-1)
    inside = torch.zeros_like(teacher).scatter(-1, places, 1.0)
    rest = (teacher * (1 - inside)).sum(-1, keepdim=True) / (teacher.shape[-1] - top)
    shift = scale * (values.mean(-1, keepdim=True) - rest)
    ranks = torch.arange(top, dtype=teacher.dtype, device=teacher.device)
    factors = (scale * (1 - ranks / top)).expand_as(values)
    growth = torch.zeros_like(teacher).scatter(-1, target, scale).scatter(-1, places, factors)
    chosen = inside.scatter(-1, target, 1.0)
    return teacher * (1 + growth) + chosen * shift


def _contrast(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """[..., classes] -> [...]: how hard it is to tell each row's own teacher, and student, among all rows."""
    rows_s, rows_t = (F.normalize(logits.flatten(0, -2), dim=-1, eps=_LEAST) for logits in (student, teacher))
    likeness = rows_s @ rows_t.T / temperature
    own = torch.arange(len(likeness), device=likeness.device)
    both = F.cross_entropy(likeness, own, reduction="none") + F.cross_entropy(likeness.T, own, reduction="none")
    return (0.5 * both).view(student.shape[:-1])
