"""Operators that move, repeat and select numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from targets.torch_import.host import axes_of, fill_of, full_shape, slices
from targets.torch_import.values import Call, Known

Operator = Callable[[Call], Any]


def _reshape(call: Call) -> Tensor:
    return torch.reshape(call.tensor(0), full_shape(call, 1))


def _flatten(call: Call) -> Tensor:
    x, axis = call.tensor(0), call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 1:
        return torch.flatten(x, 1) if x.dim() > 1 else x.reshape(-1, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: Call) -> Tensor:
    x = call.tensor(0)
    return torch.permute(x, call.integers("perm") or list(reversed(range(x.dim()))))


def _squeeze(call: Call) -> Tensor:
    """As a reshape, which converters know better."""
    x, axes = call.tensor(0), axes_of(call)
    given = None if axes is None else {axis % x.dim() for axis in axes}
    return x.reshape([size for axis, size in enumerate(x.shape) if (size != 1 if given is None else axis not in given)])


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call.tensor(0), axes_of(call) or []
    rank = x.dim() + len(axes)
    sizes = list(x.shape)
    for axis in sorted(axis % rank for axis in axes):
        sizes.insert(axis, 1)
    return x.reshape(sizes)


def _concat(call: Call) -> Tensor:
    return torch.cat(call.tensors(), call.integer("axis", 0))


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis = call.tensor(0), call.integer("axis", 0)
    if call.has(1):
        return torch.split(x, [int(size) for size in call.numbers(1)], axis)
    parts = len(call.node.outputs)
    return torch.split(x, -(-int(x.shape[axis]) // parts), axis)


def _slice(call: Call) -> Tensor:
    x = call.tensor(0)
    for axis, start, end, step in slices(call, x.dim()):
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, end, step),)]
        else:
            size = int(x.shape[axis])
            # an end below all indices means that the first number is taken too, and Python's slices say None
            taken = range(*slice(start, None if end < -size else end, step).indices(size))
            x = torch.index_select(x, axis, call.constant(np.array(taken, np.int64), f"indices_{axis}"))
    return x


def _gather(call: Call) -> Tensor:
    data, axis = call.tensor(0), call.integer("axis", 0)
    axis = axis + data.dim() if axis < 0 else axis
    if call.is_known(1):
        indices = call.known(1)
        if indices.ndim == 0:
            return torch.select(data, axis, int(indices))
        size = int(data.shape[axis])
        flat = np.where(indices < 0, indices + size, indices).reshape(-1).astype(np.int64)
        found = torch.index_select(data, axis, call.constant(flat, "indices"))
        return (
            found if indices.ndim == 1 else found.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
        )
    chosen = call.tensor(1)
    if axis == 0 and data.dim() == 2 and isinstance(call.values[0], Known):
        return F.embedding(chosen, data)
    return data[(slice(None),) * axis + (chosen,)]


def _gather_elements(call: Call) -> Tensor:
    data, chosen, axis = call.tensor(0), call.tensor(1), call.integer("axis", 0)
    return torch.gather(data, axis, torch.where(chosen < 0, chosen + data.shape[axis], chosen))


def _expand(call: Call) -> Tensor:
    x, wanted = call.tensor(0), call.numbers(1)
    rank = max(x.dim(), len(wanted))
    sizes = [1] * (rank - x.dim()) + list(x.shape)
    wanted = [1] * (rank - len(wanted)) + wanted
    pairs = zip(sizes, wanted, strict=True)
    # a wanted 1 keeps the tensor's own size
    return x.expand([have if isinstance(want, int) and want == 1 else want for have, want in pairs])


def _constant_of_shape(call: Call) -> Tensor:
    fill = torch.from_numpy(fill_of(call).copy())
    return torch.full(call.numbers(0), fill.item(), dtype=fill.dtype)


def _range(call: Call) -> Tensor:
    start, limit, step = (call.number(index) for index in range(3))
    return torch.arange(start, limit, step)


def _tile(call: Call) -> Tensor:
    return call.tensor(0).repeat([int(times) for times in call.numbers(1)])


def _pad(call: Call) -> Tensor:
    x, mode = call.tensor(0), call.text("mode", "constant")
    pads = [int(pad) for pad in call.numbers(1)]
    axes = [axis % x.dim() for axis in axes_of(call, 3) or range(x.dim())]
    before, behind = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(axes):
        before[axis], behind[axis] = pads[place], pads[place + len(axes)]
    sides = [side for pair in zip(reversed(before), reversed(behind), strict=True) for side in pair]
    if mode == "constant":
        return F.pad(x, sides, value=call.number(2) if call.has(2) else 0)
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    used = x.dim() - 2
    if mode not in names or used < 1 or any(sides[2 * used :]):
        call.refuse(f"pads by {mode!r} over {x.dim()} axes")
    return F.pad(x, sides[: 2 * used], mode=names[mode])


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.tensor(0), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.tensor(0), call.integer("blocksize", 1)
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _triangle(call: Call) -> Tensor:
    diagonal = int(call.number(1)) if call.has(1) else 0
    return (torch.triu if call.integer("upper", 1) else torch.tril)(call.tensor(0), diagonal)


def _largest(call: Call) -> tuple[Tensor, ...]:
    return tuple(
        torch.topk(
            call.tensor(0),
            int(call.number(1)),
            call.integer("axis", -1),
            bool(call.integer("largest", 1)),
            bool(call.integer("sorted", 1)),
        )
    )


OPERATORS: dict[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": lambda call: call.tensor(0),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Identity": lambda call: call.tensor(0),
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _largest,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
