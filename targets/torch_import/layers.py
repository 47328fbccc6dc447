"""Convolutions, pooling and normalizations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from targets.torch_import.values import Call, Size

Operator = Callable[[Call], Any]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _spatial(call: Call) -> int:
    rank = len(call.shape(0)) - 2
    if rank not in _CONVOLUTIONS:
        call.refuse(f"works on {rank} spatial axes, and torch has 1 to 3")
    return rank


def _steps(call: Call, rank: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank


def _pads(call: Call, kernel: Sequence[Size], strides: list[int], dilations: list[int]) -> tuple[list[Any], list[Any]]:
    """What is put before and behind each spatial axis, as `pads` or `auto_pad` say."""
    rank = len(kernel)
    how = call.text("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        pads = (call.integers("pads") or [0] * 2 * rank) if how == "NOTSET" else [0] * 2 * rank
        return pads[:rank], pads[rank:]
    before, behind = [], []
    for size, extent, stride, dilation in zip(call.shape(0)[2:], kernel, strides, dilations, strict=True):
        outputs = -(-size // stride)
        total = max(0, (outputs - 1) * stride + (extent - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if how == "SAME_UPPER" else large)
        behind.append(large if how == "SAME_UPPER" else small)
    return before, behind


def around(x: Tensor, before: Sequence[Any], behind: Sequence[Any], value: float) -> Tensor:
    """The tensor with numbers put around its last axes."""
    sides = [side for pair in zip(reversed(before), reversed(behind), strict=True) for side in pair]
    return F.pad(x, sides, value=value) if any(sides) else x


def _convolution(call: Call) -> Tensor:
    rank = _spatial(call)
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2) if call.has(2) else None
    strides, dilations = _steps(call, rank)
    before, behind = _pads(call, weight.shape[2:], strides, dilations)
    if before != behind:
        x, before = around(x, before, behind, 0.0), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, strides, before, dilations, call.integer("group", 1))


def _transposed(call: Call) -> Tensor:
    rank = _spatial(call)
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2) if call.has(2) else None
    strides, dilations = _steps(call, rank)
    extra = call.integers("output_padding") or [0] * rank
    if call.integers("output_shape") is not None or call.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        call.refuse("tells its output's size instead of its padding", "export it with `pads`")
    pads = call.integers("pads") or [0] * 2 * rank
    before, behind = pads[:rank], pads[rank:]
    function, groups = _TRANSPOSED[rank], call.integer("group", 1)
    if before == behind:
        return function(x, weight, bias, strides, before, extra, groups, dilations)
    found = function(x, weight, bias, strides, 0, extra, groups, dilations)
    for axis, (left, right) in enumerate(zip(before, behind, strict=True), 2):
        found = found.narrow(axis, left, found.shape[axis] - left - right)
    return found


def _reach(size: int, before: int, behind: int, extent: int, stride: int) -> int:
    """How much padding behind an axis makes a pool of whole windows give what one in ceil_mode gives.

    A window that would begin in the padding behind is none (ONNX, MaxPool).
    """
    outputs = -(-(size + before + behind - extent) // stride) + 1
    outputs -= (outputs - 1) * stride >= size + before
    return (outputs - 1) * stride + extent - size - before


def _max_pool(call: Call) -> Tensor:
    rank = _spatial(call)
    if len(call.node.outputs) > 1:
        call.refuse("gives indices too")
    kernel = call.integers("kernel_shape") or []
    strides, dilations = _steps(call, rank)
    before, behind = _pads(call, kernel, strides, dilations)
    x, ceil = call.tensor(0), bool(call.integer("ceil_mode", 0))
    if before != behind or any(2 * pad > extent for pad, extent in zip(before, kernel, strict=True)):
        if ceil:
            extents = [(extent - 1) * dilation + 1 for extent, dilation in zip(kernel, dilations, strict=True)]
            ends = zip(x.shape[2:], before, behind, extents, strides, strict=True)
            behind, ceil = [_reach(int(size), *rest) for size, *rest in ends], False
        x, before = around(x, before, behind, -math.inf), [0] * rank
    return _MAX_POOLS[rank](x, kernel, strides, before, dilations, ceil)


def _average_pool(call: Call) -> Tensor:
    rank = _spatial(call)
    kernel = call.integers("kernel_shape") or []
    strides, dilations = _steps(call, rank)
    if set(dilations) != {1}:
        call.refuse("is dilated")
    before, behind = _pads(call, kernel, strides, dilations)
    x, ceil, counts = call.tensor(0), bool(call.integer("ceil_mode", 0)), bool(call.integer("count_include_pad", 0))
    pool = partial(_AVERAGE_POOLS[rank], kernel_size=kernel, stride=strides, ceil_mode=ceil)
    counts = counts and any((*before, *behind))  # without padding both are the same, and kernels know this one
    if before == behind and all(2 * pad <= extent for pad, extent in zip(before, kernel, strict=True)):
        return pool(x, padding=before, count_include_pad=counts)
    if ceil:
        call.refuse("pads its ends differently in ceil_mode")
    found = pool(around(x, before, behind, 0.0), padding=0)
    if counts:
        return found
    return found / pool(around(torch.ones_like(x), before, behind, 0.0), padding=0)


def _global_average(call: Call) -> Tensor:
    rank = _spatial(call)
    if rank == 2:
        return F.adaptive_avg_pool2d(call.tensor(0), 1)
    return torch.mean(call.tensor(0), list(range(-rank, 0)), True)


def _global_max(call: Call) -> Tensor:
    return torch.amax(call.tensor(0), list(range(-_spatial(call), 0)), True)


def _batch_norm(call: Call) -> Tensor:
    if call.integer("training_mode", 0):
        call.refuse("is in training mode", "export the model in evaluation mode")
    x, scale, bias, mean, variance = (call.tensor(index) for index in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.real("epsilon", 1e-5))


def _layer_norm(call: Call) -> Tensor:
    if len(call.node.outputs) > 1:
        call.refuse("gives its means too")
    x, axis = call.tensor(0), call.integer("axis", -1)
    shape = list(x.shape[axis:])
    scale, bias = call.tensor(1), call.tensor(2) if call.has(2) else None
    if scale.shape != x.shape[axis:]:
        scale = scale.expand(shape)
    if bias is not None and bias.shape != x.shape[axis:]:
        bias = bias.expand(shape)
    return F.layer_norm(x, shape, scale, bias, call.real("epsilon", 1e-5))


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call.tensor(0), None, None, call.tensor(1), call.tensor(2), eps=call.real("epsilon", 1e-5))


def _group_norm(call: Call) -> Tensor:
    x, scale, bias = (call.tensor(index) for index in range(3))
    groups = call.integer("num_groups", 1)
    if call.opset < 21:  # a scale for each group, not for each channel
        times = int(x.shape[1]) // groups
        scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
    return F.group_norm(x, groups, scale, bias, call.real("epsilon", 1e-5))


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MaxPool": _max_pool,
}
