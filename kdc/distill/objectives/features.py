"""Objectives that compare two features of one shape, value by value."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from kdc.distill.objectives.shapes import directions, same_batch, same_shape, wide

Normalisation = Literal["layer", "standardise", "whiten", "none"]
_EPSILON = 1e-5


def hint(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two features, each first scaled to unit root mean square per example.

    FitNets compares raw features; the scaling makes one weight serve layers whose features differ in size by orders of
    magnitude.

    Args: student, teacher: features of one shape, [batch, ...].
    Returns: [batch], 0 (same direction) to 4 (opposite).
    Raises: ModelError where the shapes differ.
    Source: Romero et al. 2015, arXiv:1412.6550.
    """
    same_shape(student, teacher)
    a, b = directions(student.flatten(1), 1), directions(teacher.flatten(1), 1)
    return (a - b).square().sum(1)


def standardise(feature: torch.Tensor) -> torch.Tensor:
    """Each channel with mean 0 and variance 1 over the batch (and the positions). [batch, channels, ...], 2 or more."""
    feature = wide(feature)
    over = [dim for dim in range(feature.dim()) if dim != 1]
    variance, mean = torch.var_mean(feature, over, correction=0, keepdim=True)
    standardised: torch.Tensor = (feature - mean) / (variance + _EPSILON).sqrt()
    return standardised


def whiten(feature: torch.Tensor) -> torch.Tensor:
    """The feature times its covariance^(-1/2) over the batch, so that channels are uncorrelated with variance 1.

    Args: feature: [batch, channels]; with fewer examples than channels only their span is white, the rest stays 0.
    """
    feature = wide(feature)
    centred = feature - feature.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = values > _EPSILON * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    scale = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    white: torch.Tensor = centred @ (vectors * scale) @ vectors.T
    return white


def normalised(feature: torch.Tensor, how: Normalisation) -> torch.Tensor:
    """The teacher's feature [batch, channels] as V_kD normalises it for a task.

    `layer`: per example to mean 0 and variance 1 over the channels; `standardise`, `whiten`: see there; `none`.
    """
    match how:
        case "layer":
            return F.layer_norm(wide(feature), feature.shape[1:])
        case "standardise":
            return standardise(feature)
        case "whiten":
            return whiten(feature)
        case "none":
            return wide(feature)


def orthogonal_match(
    student: torch.Tensor, teacher: torch.Tensor, normalisation: Normalisation = "layer"
) -> torch.Tensor:
    """V_kD: smooth L1 distance between the student's projected feature and the teacher's normalised one.

    d^2 / 2 for |d| < 1 and |d| - 1/2 beyond, mean over the channels. The projection must have orthonormal columns
    (`kdc.distill.projectors.OrthogonalProjector`): it then keeps the student's inner products, and cannot learn away
    what the student lacks.

    Args: student: projected to the teacher's channels, teacher: both [batch, channels], pooled over positions.
    Returns: [batch], 0 or more.
    Raises: ModelError where the shapes differ.
    Source: Miles et al. 2024, "VkD", arXiv:2403.06213; loss, pooling and the layer normalisation for classification
    as in the authors' code (roymiles/vkd, `engine.py`), standardising as in its detector. Whitening, for generation, as
    in the paper's text only: the form (symmetric, over the batch) is ours.
    """
    same_shape(student, teacher)
    return F.smooth_l1_loss(wide(student), normalised(teacher, normalisation), reduction="none").mean(1)


def simple_recipe(student: torch.Tensor, teacher: torch.Tensor, power: float = 4.0) -> torch.Tensor:
    """SRD: log of the summed powers of the differences between standardised features.

    log sum over examples i and channels c of |Z_s[i, c] - Z_t[i, c]|^power, Z standardised over the batch. The log keeps
    the gradient from shrinking as the sum does; 1e-12 inside it keeps equality finite.

    Args: student: projected linearly to the teacher's channels, teacher: both [batch, channels]. power: >= 1.
    Returns: [batch]: the batch's one value, in every place, so that a mean over the batch is the paper's value.
    Raises: ModelError where the shapes differ or the batch has one example.
    Source: Miles and Mikolajczyk 2024, "Understanding the Role of the Projector in Knowledge Distillation",
    arXiv:2303.11098; as in the authors' code (roymiles/Simple-Recipe-Distillation, `OurDistillationLoss`).
    """
    same_shape(student, teacher)
    same_batch(student, teacher, at_least=2)
    difference = standardise(student) - standardise(teacher)
    return torch.log(difference.abs().pow(power).sum() + 1e-12).expand(len(student))


def masked_recovery(recovered: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Summed squared difference between the teacher's feature and what was recovered from the student's masked one.

    The masking and the two convolutions that recover stand in `kdc.distill.projectors.Recovery`.

    Args: recovered, teacher: [batch, channels, ...]
    Returns: [batch], squares of the features' unit, summed over all values: the paper's weight is of the order 1e-5.
    Raises: ModelError where the shapes differ.
    Source: Yang et al. 2022, "Masked Generative Distillation", arXiv:2205.01529; as in the authors' code (yzd-v/MGD).
    """
    same_shape(recovered, teacher)
    return (wide(recovered) - wide(teacher)).square().flatten(1).sum(1)


def dual_view(
    student: torch.Tensor, teacher: torch.Tensor, whole: float = 0.08, alternating: float = 0.06
) -> torch.Tensor:
    """ScaleKD's dual view: the features as they are, and without the constant part that dominates a ViT's.

    whole * D(s, t) + alternating * D(s - mean s, t - mean t), the means over positions, for taking the cosine transform's
    first coefficient away is taking the mean away; D is the squared difference of features whose channels are scaled to
    length 1 at each position, summed over positions.

    Args: student: projected to the teacher's channels, teacher: both [batch, channels, *positions].
    Returns: [batch], without a unit.
    Raises: ModelError where the shapes differ.
    Source: Fan et al. 2024, "ScaleKD", arXiv:2411.06786; as in the authors' code (deep-optimization/ScaleKD,
    `FreqMaskingDistillLoss`; weights of its Swin-L to DeiT-B setting). Only this of its three parts.
    """
    same_shape(student, teacher)
    value = torch.zeros((), dtype=wide(student).dtype, device=student.device)
    for weight, constant in ((whole, True), (alternating, False)):
        views = [wide(feature).flatten(2) for feature in (student, teacher)]
        if not constant:
            views = [view - view.mean(2, keepdim=True) for view in views]
        a, b = (directions(view, 1) for view in views)
        value = value + weight * (a - b).square().sum((1, 2))
    return value
