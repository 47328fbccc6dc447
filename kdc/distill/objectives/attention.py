"""Objectives on attention maps: where a network looks, not what it computes there."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.objectives.shapes import directions, same_batch, same_shape, scaled, wide


def attention_map(feature: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Q / |Q| with Q = mean over the channels of |feature|^power: the length-1 map of where activations are large.

    Args: feature: [batch, channels, *positions]. power: > 0.
    Returns: [batch, positions], without a unit.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928 (the sum of powers; a mean gives the same map).
    """
    energy = scaled(feature).abs().pow(power).mean(1)
    return directions(energy.flatten(1), 1)


def attention_transfer(student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Mean squared difference of two attention maps.

    Args: student, teacher: [batch, channels, *positions]; the channels may differ. power: > 0.
    Returns: [batch], 0 (one map) to 2 / positions (maps that do not overlap).
    Raises: ModelError where batch or positions differ.
    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; the square and the mean over positions are those
    of the authors' code (szagoruyko/attention-transfer, `at_loss`), whose weight of 1000 belongs to them.
    """
    same_batch(student, teacher)
    if student.shape[2:] != teacher.shape[2:]:
        raise ModelError(
            f"attention maps of {tuple(student.shape[2:])} and {tuple(teacher.shape[2:])} positions: expected the same",
            do="resize the larger one by average pooling first",
        )
    return (attention_map(student, power) - attention_map(teacher, power)).square().mean(1)


def class_attention(
    student: torch.Tensor, teacher: torch.Tensor, resolution: int = 2, normalise: bool = True
) -> torch.Tensor:
    """Mean squared difference of the class activation maps, after average pooling and, per class, scaling to length 1.

    Args: student, teacher: class activation maps [batch, classes, height, width]: the classifier's weights applied at
        every position of the last feature map; height and width may differ between the two. resolution: >= 1, of the
        maps that are compared. normalise: scale each class's map to length 1.
    Returns: [batch], squares of the maps' unit; without a unit when normalised.
    Raises: ModelError where batch or classes differ.
    Source: Guo et al. 2023, "Class Attention Transfer Based Knowledge Distillation", CVPR; pooling, scaling and mean as
    in the authors' code (GzyAftermath/CAT-KD, `CAT_loss`), the equation itself was not checked.
    """
    pooled = [F.adaptive_avg_pool2d(wide(maps), resolution) for maps in (student, teacher)]
    same_shape(pooled[0], pooled[1])
    if normalise:
        pooled = [directions(maps.flatten(2), 2) for maps in pooled]
    return (pooled[0] - pooled[1]).square().flatten(1).mean(1)
