"""Quantizers that train, and what stands for them in an ONNX file.

In training, gradients pass the rounding straight through (brevitas) and reach the scales too (LSQ, Esser et al. 2020,
arXiv:1902.08153). A scale is learned as the binary logarithm of its gain over calibration, so that a step of the
optimizer changes every scale by the same share whatever its size (Jain et al. 2019, arXiv:1903.08066).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.core.function_wrapper import RoundSte, TensorClamp
from torch import nn

from kdc.numerics.affine import Affine, fake_quantize, highest_weight, max_abs_scale, mse_clip, quantize

SCALE_RATE = 32
"""How many times faster than weights a scale's logarithm is learned. At the weights' own rate, in as few steps as a
distillation takes, scales hardly move: with 1 in place of 32 the test of what training wins back fails."""
LARGEST_BIAS = 2**30  # in steps of its int32 grid: half of what fits, for the products are added to it

_round = RoundSte()
_clamp = TensorClamp()


class Quantizer(nn.Module):
    """Holds a tensor to a grid of integers: [...] in, [...] out. The scale is learned, the zero point is not."""

    straight_through = False  # see `kdc.distill.modes.differentiable`

    def __init__(self, grid: Affine) -> None:
        super().__init__()
        self.low, self.high, self.enabled = grid.low, grid.high, True
        self.register_buffer("base_scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32))
        self.gain = nn.Parameter(torch.zeros(()))
        self.base_scale: torch.Tensor
        self.zero_point: torch.Tensor

    @property
    def scale(self) -> torch.Tensor:
        """The step, []; differentiable."""
        return self.base_scale * torch.exp2(SCALE_RATE * self.gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest points of the grid."""
        if not self.enabled:
            return x
        if not (self.training or self.straight_through):
            return fake_quantize(x, self.scale, self.zero_point, self.low, self.high)
        # As LSQ: the gradient of a scale is a sum over the tensor, and would else drown those of the weights.
        scale = _scaled_gradient(self.scale, 1 / math.sqrt(x.numel() * self.high))
        return _straight_through(x, scale, self.zero_point, self.low, self.high)

    def extra_repr(self) -> str:
        """What the structure depends on."""
        return f"low={self.low}, high={self.high}"

    def lowered(self) -> nn.Module:
        """Its QuantizeLinear and DequantizeLinear."""
        return FrozenQuantizer(self.scale.detach(), self.zero_point.to(_dtype(self.low, self.high)))


class QuantizedLayer(nn.Module):
    """A convolution or a linear layer with weights held to int8, symmetric, by their largest magnitude at the time.

    Args: operator: of ATen; called with input, weight, bias and `arguments`. bias: [channels] or None. per_channel: one
    scale for each output channel (axis 0). bits: of the weights: 8 use all of int8, 7 its inner half. source: the
    input's quantizer, when the bias is to be int32 in the file.
    """

    def __init__(
        self,
        operator: Callable[..., torch.Tensor],
        arguments: tuple[Any, ...],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        per_channel: bool,
        bits: int,
        clip_by_mse: bool,
        source: Quantizer | None,
    ) -> None:
        super().__init__()
        self.operator, self.arguments, self.enabled = operator, arguments, True
        self.axis = 0 if per_channel else None
        self.high = highest_weight(bits)
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        values = self.weight.detach()
        ones = torch.ones_like(max_abs_scale(values, self.axis))
        clip = mse_clip(values, self.axis, self.high) if clip_by_mse else ones
        self.register_buffer("clip", clip)
        self.clip: torch.Tensor
        self._source = (source,)  # a tuple hides it from nn.Module: it is saved where it stands, once

    def weight_scale(self) -> torch.Tensor:
        """[channels, 1, ...] or [1, 1, ...]; differentiable."""
        scale = max_abs_scale(self.weight, self.axis, self.high) * self.clip
        source = self._source[0]
        if source is None or self.bias is None:
            return scale
        # A channel of tiny weights (pruned, or folded from a dead BatchNorm) would need more than int32 for its bias.
        bias = self.bias.detach().abs() if self.axis == 0 else self.bias.detach().abs().amax()
        floor = bias / (source.scale.detach() * LARGEST_BIAS)
        return torch.maximum(scale, floor.reshape(scale.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer, on weights held to their grid, and the bias to that of the int32 in the file."""
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if self.enabled:
            hold = _straight_through if self.training else fake_quantize
            scale, source = self.weight_scale(), self._source[0]
            weight = hold(weight, scale, 0, -self.high, self.high)
            if bias is not None and source is not None:
                step = source.scale * (scale.flatten() if self.axis == 0 else scale.reshape(()))
                bias = hold(bias, step, 0, -2 * LARGEST_BIAS, 2 * LARGEST_BIAS)
        return self.operator(x, weight, bias, *self.arguments)

    def extra_repr(self) -> str:
        """What the structure depends on."""
        shape = tuple(self.weight.shape)
        return f"{self.operator}, weight={shape}, arguments={self.arguments}, axis={self.axis}, high={self.high}"

    @torch.no_grad()
    def lowered(self) -> nn.Module:
        """The operator on int8 weights and, where the device wants it, an int32 bias."""
        scale = self.weight_scale()
        weight = quantize(self.weight, scale, 0, -self.high, self.high).to(torch.int8)
        scale = scale.flatten() if self.axis == 0 else scale.reshape(())
        source = self._source[0]
        bias: nn.Module | None = None
        if self.bias is not None:
            if source is None:
                bias = FloatConstant(self.bias)
            else:
                step = source.scale * scale
                bias = IntegerConstant(torch.round(self.bias / step).to(torch.int32), step, 0 if step.dim() else None)
        return FrozenLayer(self.operator, self.arguments, IntegerConstant(weight, scale, self.axis), bias)


class FrozenQuantizer(nn.Module):
    """QuantizeLinear and DequantizeLinear."""

    def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())
        self.scale: torch.Tensor
        self.zero_point: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Emits two ONNX operators; runs in an export only."""
        q = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, self.scale, self.zero_point), dtype=self.zero_point.dtype, shape=x.shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (q, self.scale, self.zero_point), dtype=x.dtype, shape=x.shape
        )


class IntegerConstant(nn.Module):
    """Integers behind a DequantizeLinear; `axis` is that of the scales, None where there is one."""

    def __init__(self, values: torch.Tensor, scale: torch.Tensor, axis: int | None) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("values", values)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=values.dtype))
        self.values: torch.Tensor
        self.scale: torch.Tensor
        self.zero_point: torch.Tensor

    def forward(self) -> torch.Tensor:
        """Emits an ONNX operator; runs in an export only."""
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (self.values, self.scale, self.zero_point),
            {} if self.axis is None else {"axis": self.axis},
            dtype=self.scale.dtype,
            shape=self.values.shape,
        )


class FloatConstant(nn.Module):
    """Numbers that stay as they are."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().clone())
        self.values: torch.Tensor

    def forward(self) -> torch.Tensor:
        """The numbers."""
        return self.values


class FrozenLayer(nn.Module):
    """A layer whose weight and bias come from constants."""

    def __init__(
        self,
        operator: Callable[..., torch.Tensor],
        arguments: tuple[Any, ...],
        weight: nn.Module,
        bias: nn.Module | None,
    ) -> None:
        super().__init__()
        self.operator, self.arguments, self.weight, self.bias = operator, arguments, weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer."""
        return self.operator(x, self.weight(), None if self.bias is None else self.bias(), *self.arguments)


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """The model without its quantizers, for as long as this lasts."""
    switched = [module for module in model.modules() if isinstance(module, Quantizer | QuantizedLayer)]
    try:
        for module in switched:
            module.enabled = False
        yield
    finally:
        for module in switched:
            module.enabled = True


def _straight_through(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int
) -> torch.Tensor:
    """`fake_quantize` with a gradient: that of rounding is 1, that of clamping is 0 outside; scales get theirs."""
    ends = x.new_tensor(float(low)), x.new_tensor(float(high))
    q: torch.Tensor = _clamp(_round(x / scale) + zero_point, min_val=ends[0], max_val=ends[1])
    return (q - zero_point) * scale


def _scaled_gradient(x: torch.Tensor, share: float) -> torch.Tensor:
    """The same number with a share of its gradient."""
    return x.detach() + share * (x - x.detach())


def _dtype(low: int, high: int) -> torch.dtype:
    return torch.uint8 if low >= 0 else torch.int8
