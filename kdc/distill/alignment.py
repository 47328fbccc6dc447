"""Features of unlike shapes brought to one: maps, tokens and vectors all become [batch, channels, *positions].

A transformer's tokens are laid out as the map that they were cut from where their number is a square, or one more than a
square (the class token in front is left out); so a convolutional net's map and a transformer's tokens can be compared
place by place. What has more positions is pooled to what has fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

_POOLING: dict[int, Callable[..., torch.Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


@dataclass(frozen=True)
class Layer:
    """A module that gives a feature: its path, its output's shape without the batch, and where the channels stand."""

    path: str
    shape: tuple[int, ...]
    channels_last: bool
    depth: float  # share of the model's module calls that had ended when it did

    @property
    def channels(self) -> int:
        """Channels of the feature."""
        return self.shape[-1] if self.channels_last else self.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """Height and width of a map, number of tokens, or nothing for a vector."""
        return self.shape[:-1] if self.channels_last else self.shape[1:]

    def channels_first(self, feature: torch.Tensor) -> torch.Tensor:
        """The layer's output as [batch, channels, *positions]; a vector has one position."""
        if self.channels_last:
            feature = feature.movedim(-1, 1)
        return feature if feature.dim() > 2 else feature.unsqueeze(2)


def aligned(
    student: torch.Tensor, teacher: torch.Tensor, tokens: tuple[bool, bool] = (False, False)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both features with the same positions; channels are left alone.

    Args: student, teacher: [batch, channels, *positions], one or more positions. tokens: which of the two are tokens,
        and may be laid out as a map.
    Returns: both, with the smaller number of positions along each dimension.
    """
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    grids = [laid_out(f) if cut else f for f, cut in zip((student, teacher), tokens, strict=True)]
    if grids[0].dim() == grids[1].dim():
        student, teacher = grids
    if student.dim() != teacher.dim():
        student, teacher = student.flatten(2), teacher.flatten(2)
    size = tuple(min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return resized(student, size), resized(teacher, size)


def laid_out(feature: torch.Tensor) -> torch.Tensor:
    """Tokens [batch, channels, count] as a square map, where they are one; anything else as it is."""
    if feature.dim() != 3:
        return feature
    count = feature.shape[2]
    for first in (0, 1):
        side = math.isqrt(count - first)
        if side > 1 and side * side == count - first:
            return feature[:, :, first:].reshape(*feature.shape[:2], side, side)
    return feature


def resized(feature: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Average-pooled to these positions, none of them more than there are."""
    if tuple(feature.shape[2:]) == size:
        return feature
    pooled: torch.Tensor = _POOLING[len(size)](feature, size)
    return pooled
