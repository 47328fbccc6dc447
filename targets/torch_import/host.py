"""Operators on known values, in numpy: the arithmetic of sizes, and what no simplifier folded."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir
import torch

from targets.torch_import.values import Array, Call, as_sizes


def _shape(call: Call) -> Array:
    sizes = call.shape(0)
    end = call.integer("end", len(sizes))
    return as_sizes(sizes[call.integer("start", 0) : end])


def _size(call: Call) -> Array:
    return as_sizes([math.prod(call.shape(0))]).reshape(())


def _pair(function: Callable[[Any, Any], Any], call: Call) -> Array:
    left, right = call.known(0), call.known(1)
    return np.asarray(function(left, right))


def _divide(left: Array, right: Array) -> Any:
    if "O" in (left.dtype.kind, right.dtype.kind):
        return left // right  # sizes are not negative
    if left.dtype.kind in "iu":
        return (left - np.fmod(left, right)) // right  # ONNX rounds to zero
    return left / right


def _many(function: Callable[[Any, Any], Any], call: Call) -> Array:
    found = call.known(0)
    for index in range(1, len(call.values)):
        found = np.asarray(function(found, call.known(index)))
    return found


def _gather(call: Call) -> Array:
    return np.asarray(np.take(call.known(0), call.known(1).astype(np.int64), axis=call.integer("axis", 0)))


def _concat(call: Call) -> Array:
    return np.concatenate([call.known(index) for index in range(len(call.values))], axis=call.integer("axis", 0))


def _slice(call: Call) -> Array:
    data = call.known(0)
    taken = [slice(None)] * data.ndim
    for axis, start, end, step in slices(call, data.ndim):
        taken[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(taken)]


def slices(call: Call, rank: int) -> list[tuple[int, Any, Any, int]]:
    """What a Slice takes, as (axis, start, end, step)."""
    starts, ends = call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if call.has(3) else list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    return [(axis % rank, s, e, step) for axis, s, e, step in zip(axes, starts, ends, steps, strict=True)]


def axes_of(call: Call, index: int = 1) -> list[int] | None:
    """The axes of a Squeeze, an Unsqueeze or a reduction: an input, in older opsets an attribute; None: all."""
    return [int(axis) for axis in call.numbers(index)] if call.has(index) else call.integers("axes")


def _squeeze(call: Call) -> Array:
    axes = axes_of(call)
    return np.squeeze(call.known(0), None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Array:
    return np.expand_dims(call.known(0), tuple(axes_of(call) or ()))


def _cast(call: Call) -> Array:
    kind = onnx_ir.DataType(call.integer("to", 0))
    array = call.known(0)
    # A free size is an integer already; float arithmetic on it is refused where it would begin.
    if array.dtype == object and kind not in (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32):
        call.refuse(f"makes {kind.name} of a free size", "build it for a batch of known size")
    return array if array.dtype == object else array.astype(kind.numpy())


def _reshape(call: Call) -> Array:
    return call.known(0).reshape(full_shape(call, 1))


def full_shape(call: Call, index: int) -> list[Any]:
    """A Reshape's target, with the sizes that a 0 takes over."""
    sizes = call.shape(0)
    wanted = call.numbers(index)
    if call.integer("allowzero", 0):
        return wanted
    return [sizes[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(wanted)]


def _expand(call: Call) -> Array:
    wanted = tuple(call.numbers(1))
    return np.broadcast_to(call.known(0), np.broadcast_shapes(call.known(0).shape, wanted))


def fill_of(call: Call) -> Array:
    """What a ConstantOfShape is filled with: one number, [1]."""
    found = call.node.attributes.get("value")
    return np.zeros(1, np.float32) if found is None else found.as_tensor().numpy().reshape(1)


def _constant_of_shape(call: Call) -> Array:
    fill = fill_of(call)
    return np.full(tuple(call.numbers(0)), fill[0], fill.dtype)


def _where(call: Call) -> Array:
    return np.where(call.known(0), call.known(1), call.known(2))


def _range(call: Call) -> Array:
    start, limit, step = (call.number(index) for index in range(3))
    return np.arange(start, limit, step, dtype=call.known(0).dtype)


def _product(call: Call) -> Array:
    axes = axes_of(call)
    keep = bool(call.integer("keepdims", 1))
    return np.asarray(np.prod(call.known(0), None if axes is None else tuple(axes), keepdims=keep))


def _transpose(call: Call) -> Array:
    return np.ascontiguousarray(np.transpose(call.known(0), call.integers("perm")))


def _dequantize(call: Call) -> Array:
    """Integers of 32 bits are biases: the converters quantize a float bias themselves, by the same two scales."""
    values, scale = call.known(0), call.known(1)
    zero_point = call.known(2).astype(np.int64) if call.has(2) else np.zeros_like(scale, np.int64)
    if scale.ndim == 1 and scale.size > 1:
        shape = [1] * values.ndim
        shape[call.integer("axis", 1)] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    found: Array = ((values.astype(np.int64) - zero_point) * scale.astype(np.float64)).astype(scale.dtype)
    return found


_OF_NUMBERS: dict[str, Callable[[Call], Array]] = {
    "Add": partial(_pair, np.add),
    "Sub": partial(_pair, np.subtract),
    "Mul": partial(_pair, np.multiply),
    "Div": partial(_pair, _divide),
    "Max": partial(_many, np.maximum),
    "Min": partial(_many, np.minimum),
    "Equal": partial(_pair, np.equal),
    "Less": partial(_pair, np.less),
    "LessOrEqual": partial(_pair, np.less_equal),
    "Greater": partial(_pair, np.greater),
    "GreaterOrEqual": partial(_pair, np.greater_equal),
    "Not": lambda call: np.logical_not(call.known(0)),
    "Neg": lambda call: -call.known(0),
    "Sqrt": lambda call: np.sqrt(call.known(0)),
    "Reciprocal": lambda call: np.reciprocal(call.known(0)),
    "Where": _where,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _product,
    "Identity": lambda call: call.known(0),
}
_ON_FREE_SIZES = frozenset(
    {"Add", "Sub", "Mul", "Div", "Equal", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Cast", "Reshape"}
    | {"ReduceProd", "Identity", "Where"}
)
_OF_SHAPES: dict[str, Callable[[Call], Array]] = {"Shape": _shape, "Size": _size}


def folded(call: Call) -> Callable[[Call], Array] | None:
    """The function that computes this node without data; None where data are needed, or it stands in the trace."""
    kind = call.node.op_type
    if kind in _OF_SHAPES:
        return _OF_SHAPES[kind]
    given = [index for index in range(len(call.values)) if call.has(index)]
    if any(isinstance(call.values[index], torch.Tensor) for index in given):
        return None
    if not all(call.is_known(index) for index in given):
        fits = kind in _ON_FREE_SIZES and not (kind == "Reshape" and not call.is_known(1))
        return _OF_NUMBERS[kind] if fits else None
    if kind == "DequantizeLinear":
        return _dequantize if call.known(0).dtype == np.int32 else None
    return _OF_NUMBERS.get(kind)
