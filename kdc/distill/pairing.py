"""Layers of student and teacher, paired by themselves, with projectors that live only as long as the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdc.core.errors import ModelError


class Tap:
    """Features of named modules, as the last forward gave them. Its hooks belong to one model and go with `close`."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise ModelError(f"hints name the layer {path!r}, which {type(model).__name__} does not have")
        self.features: dict[str, torch.Tensor] = {}
        self._handles = [modules[path].register_forward_hook(self._keep(path)) for path in paths]

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self.features[path] = output

        return hook

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()


class Projector(nn.Module):
    """A student's feature in the shape of a teacher's: a 1x1 map over channels, then resizing where the maps differ."""

    def __init__(self, student: torch.Size, teacher: torch.Size, generator: torch.Generator) -> None:
        super().__init__()
        channels_in, channels = student[1], teacher[1]
        weight = torch.randn((channels, channels_in), generator=generator) * channels_in**-0.5
        self.weight = nn.Parameter(weight)
        self.size = tuple(teacher[2:])

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, student's channels, ...] -> [batch, teacher's channels, ...]."""
        projected = torch.einsum("oi,bi...->bo...", self.weight, feature)
        if tuple(projected.shape[2:]) == self.size:
            return projected
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.size)]
        return F.interpolate(projected, self.size, mode=mode, align_corners=False)


@torch.no_grad()
def shapes(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Size]:
    """Output shape of every module that gives one feature tensor [batch, channels, ...], in the order they ran."""
    paths = [path for path, _ in model.named_modules() if path]
    tap = Tap(model, paths)
    training = model.training
    model.eval()
    try:
        model(*inputs)
        return {path: feature.shape for path, feature in tap.features.items() if feature.dim() >= 2}
    finally:
        model.train(training)
        tap.close()


def pair(student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size], count: int) -> dict[str, str]:
    """`count` pairs {student's path: teacher's path}, evenly spaced over the depth at which the map's size changes.

    The last module of each spatial size (the end of a stage) is a candidate; stages are paired by equal size, and by
    relative depth where no size is shared.
    """
    ends_s, ends_t = _stage_ends(student), _stage_ends(teacher)
    pairs = {path: ends_t[size] for size, path in ends_s.items() if size in ends_t}
    if not pairs and ends_s and ends_t:
        names_s, names_t = list(ends_s.values()), list(ends_t.values())
        pairs = {
            name: names_t[round(i * (len(names_t) - 1) / max(1, len(names_s) - 1))] for i, name in enumerate(names_s)
        }
    chosen = list(pairs.items())
    step = max(1.0, len(chosen) / count)
    return dict(chosen[min(len(chosen) - 1, int(step * (i + 1)) - 1)] for i in range(min(count, len(chosen))))


def _stage_ends(features: Mapping[str, torch.Size]) -> dict[tuple[int, ...], str]:
    ends: dict[tuple[int, ...], str] = {}
    for path, shape in features.items():
        if len(shape) >= 3 and max(shape[2:]) > 1:
            ends[tuple(shape[2:])] = path
    return ends
