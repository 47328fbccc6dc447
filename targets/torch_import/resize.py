"""Resize: torch's own interpolation where it computes the same, else rows and columns picked by index."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from targets.torch_import.values import Array, Call

_COORDINATES: dict[str, Callable[[Array, float, int, int], Array]] = {
    "half_pixel": lambda x, scale, size, out: (x + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda x, scale, size, out: (x + 0.5) / scale - 0.5 if out > 1 else x * 0,
    "asymmetric": lambda x, scale, size, out: x / scale,
    "align_corners": lambda x, scale, size, out: x * (size - 1) / (out - 1) if out > 1 else x * 0,
}
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}
_SMOOTH = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}


def resize(call: Call) -> Tensor:
    """The operator. Raises: TargetError for a mode that torch does not compute as ONNX defines it."""
    x = call.tensor(0)
    rank = x.dim() - 2
    sizes, scales = _sizes(call, x)
    mode, coordinates = call.text("mode", "nearest"), call.text("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES or call.integer("antialias", 0) or call.integer("exclude_outside", 0):
        call.refuse(f"takes its coordinates by {coordinates!r}, or antialiases")
    if mode == "nearest":
        return _nearest(call, x, sizes, scales, coordinates)
    name = _SMOOTH.get(mode, {}).get(rank)
    corners = coordinates == "align_corners"
    exact = corners or all(out == size * scale for out, size, scale in zip(sizes, x.shape[2:], scales, strict=True))
    alone = coordinates == "pytorch_half_pixel" or 1 not in sizes
    if (
        name is None
        or coordinates == "asymmetric"
        or not exact
        or not alone
        or call.real("cubic_coeff_a", -0.75) != -0.75
    ):
        call.refuse(f"is {mode} by {coordinates!r} over {rank} axes, by {scales}: torch computes it otherwise")
    return F.interpolate(x, sizes, mode=name, align_corners=corners)


def _sizes(call: Call, x: Tensor) -> tuple[list[int], list[float]]:
    """The output's spatial sizes, and by how much each grows."""
    spatial = [int(size) for size in x.shape[2:]]
    axes = call.integers("axes") or list(range(x.dim()))
    by_size = call.has(3)
    given = dict(zip((axis % x.dim() for axis in axes), call.numbers(3 if by_size else 2), strict=True))
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        call.refuse("keeps an aspect ratio")
    kept = [given.get(axis, 1 if not by_size else None) for axis in (0, 1)]
    if not by_size and kept != [1, 1]:
        call.refuse("resizes the batch or the channels")
    if by_size:
        sizes = [int(given.get(axis, size)) for axis, size in enumerate(spatial, 2)]
        return sizes, [out / size for out, size in zip(sizes, spatial, strict=True)]
    scales = [float(given.get(axis, 1.0)) for axis in range(2, x.dim())]
    return [math.floor(size * scale) for size, scale in zip(spatial, scales, strict=True)], scales


def _nearest(call: Call, x: Tensor, sizes: list[int], scales: list[float], coordinates: str) -> Tensor:
    rounding = call.text("nearest_mode", "round_prefer_floor")
    indices = []
    for out, size, scale in zip(sizes, x.shape[2:], scales, strict=True):
        places = _COORDINATES[coordinates](np.arange(out, dtype=np.float64), scale, int(size), out)
        indices.append(np.clip(_ROUNDINGS[rounding](places), 0, int(size) - 1).astype(np.int64))
    # What torch's own operator picks: floor(place / scale).
    plain = [np.arange(out) * int(size) // out for out, size in zip(sizes, x.shape[2:], strict=True)]
    if all(np.array_equal(one, other) for one, other in zip(indices, plain, strict=True)):
        return F.interpolate(x, sizes, mode="nearest")
    for axis, chosen in enumerate(indices, 2):
        x = torch.index_select(x, axis, call.constant(chosen, f"indices_{axis}"))
    return x
