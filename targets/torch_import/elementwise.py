"""Operators that work number by number, reductions, and products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import onnx_ir
import torch
from torch import Tensor
from torch.nn import functional as F

from targets.torch_import.host import axes_of
from targets.torch_import.values import Call

Operator = Callable[[Call], Any]

DTYPES = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.FLOAT16: torch.float16,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
    onnx_ir.DataType.DOUBLE: torch.float64,
    onnx_ir.DataType.UINT8: torch.uint8,
    onnx_ir.DataType.INT8: torch.int8,
    onnx_ir.DataType.INT16: torch.int16,
    onnx_ir.DataType.UINT16: torch.uint16,
    onnx_ir.DataType.INT32: torch.int32,
    onnx_ir.DataType.INT64: torch.int64,
    onnx_ir.DataType.BOOL: torch.bool,
}


def _one(function: Callable[[Tensor], Tensor], call: Call) -> Tensor:
    return function(call.tensor(0))


def _two(function: Callable[[Tensor, Tensor], Tensor], call: Call) -> Tensor:
    return function(call.tensor(0), call.tensor(1))


def _many(function: Callable[[Tensor, Tensor], Tensor], call: Call) -> Tensor:
    return reduce(function, call.tensors())


def _divide(left: Tensor, right: Tensor) -> Tensor:
    # ONNX rounds integers to zero
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _product_of_matrices(left: Tensor, right: Tensor) -> Tensor:
    """As one batch of products where the batches are the same: matmul would first expand both, a copy each."""
    batch = left.shape[:-2]
    if left.dim() < 3 or batch != right.shape[:-2]:
        return torch.matmul(left, right)
    found = torch.bmm(left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:]))
    return found.reshape(*batch, *found.shape[-2:])


def _power(call: Call) -> Tensor:
    x = call.tensor(0)
    if call.is_known(1) and call.known(1).size == 1 and len(call.shape(1)) <= x.dim():
        exponent = call.number(1)
        return x * x if exponent == 2 else torch.pow(x, exponent).to(x.dtype)
    return torch.pow(x, call.tensor(1)).to(x.dtype)


def _modulo(call: Call) -> Tensor:
    function = torch.fmod if call.integer("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.tensor(1))


def _clip(call: Call) -> Tensor:
    x = call.tensor(0)
    if not all(call.is_known(index) for index in (1, 2) if call.has(index)):
        return torch.clamp(x, *(call.tensor(index) if call.has(index) else None for index in (1, 2)))
    low, high = (call.number(index) if call.has(index) else None for index in (1, 2))
    if low is None or high is None or not x.is_floating_point():
        return torch.clamp(x, low, high)
    return F.hardtanh(x, low, high)  # with both ends it is the activation that converters fuse into the layer before it


def _hard_sigmoid(call: Call) -> Tensor:
    x, alpha, beta = call.tensor(0), call.real("alpha", 0.2), call.real("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.text("approximate", "none"))


def _prelu(call: Call) -> Tensor:
    x, slope = call.tensor(0), call.tensor(1)
    return torch.where(x < 0, x * slope, x)


def _cast(call: Call) -> Tensor:
    kind = onnx_ir.DataType(call.integer("to", 0))
    if kind not in DTYPES:
        call.refuse(f"makes {kind.name} of it, which torch does not compute with")
    return call.tensor(0).to(DTYPES[kind])


def _softmax(function: Callable[..., Tensor], call: Call) -> Tensor:
    return function(call.tensor(0), dim=call.integer("axis", -1))


def _reduce(function: Callable[..., Tensor], call: Call) -> Tensor:
    """function: of x, axes and whether to keep them."""
    x, axes = call.tensor(0), axes_of(call)
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    return function(x, axes, bool(call.integer("keepdims", 1)))


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.dim() == 4 and not keep and sorted(axis % 4 for axis in axes) == [2, 3]:
        return torch.mean(x, [2, 3], True).flatten(1)  # a global average pool by another name: converters know that one
    return torch.mean(x, axes, keep)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _index(function: Callable[..., Tensor], call: Call) -> Tensor:
    if call.integer("select_last_index", 0):
        call.refuse("gives the last of equal numbers, and torch gives the first")
    return function(call.tensor(0), call.integer("axis", 0), bool(call.integer("keepdims", 1)))


def _cumulative_sum(call: Call) -> Tensor:
    if call.integer("exclusive", 0) or call.integer("reverse", 0):
        call.refuse("sums exclusively or in reverse")
    return torch.cumsum(call.tensor(0), int(call.number(1)), dtype=call.tensor(0).dtype)


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.text("equation", ""), *call.tensors())


def _gemm(call: Call) -> Tensor:
    """alpha a b + beta c; those with a constant b have become Linear."""
    a, b = call.tensor(0), call.tensor(1)
    a = a.t() if call.integer("transA", 0) else a
    b = b.t() if call.integer("transB", 0) else b
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    found = torch.matmul(a, b)
    found = found if alpha == 1 else found * alpha
    if not call.has(2) or beta == 0:
        return found
    return found + (call.tensor(2) if beta == 1 else call.tensor(2) * beta)


def _linear(call: Call) -> Tensor:
    return F.linear(call.tensor(0), call.tensor(1), call.tensor(2) if call.has(2) else None)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "MatMul": _product_of_matrices,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}
_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": lambda x, axes, keep: torch.sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": _mean,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep),
}
OPERATORS: dict[str, Operator] = {
    **{kind: partial(_one, function) for kind, function in _UNARY.items()},
    **{kind: partial(_two, function) for kind, function in _BINARY.items()},
    **{kind: partial(_many, function) for kind, function in _VARIADIC.items()},
    **{kind: partial(_reduce, function) for kind, function in _REDUCTIONS.items()},
    "ArgMax": partial(_index, torch.argmax),
    "ArgMin": partial(_index, torch.argmin),
    "Cast": _cast,
    "Celu": lambda call: F.celu(call.tensor(0), call.real("alpha", 1.0)),
    "Clip": _clip,
    "CumSum": _cumulative_sum,
    "Einsum": _einsum,
    "Elu": lambda call: F.elu(call.tensor(0), call.real("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.real("alpha", 0.01)),
    "Linear": _linear,
    "LogSoftmax": partial(_softmax, F.log_softmax),
    "Mod": _modulo,
    "Pow": _power,
    "PRelu": _prelu,
    "Softmax": partial(_softmax, F.softmax),
    "Where": lambda call: torch.where(call.tensor(0), call.tensor(1), call.tensor(2)),
}
