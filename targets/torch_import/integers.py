"""QuantizeLinear and DequantizeLinear as torch's `quantized_decomposed`, by which converters know integer kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import torch
import torch.ao.quantization.fx._decomposed  # its import defines the operators
from torch import Tensor

from targets.torch_import.elementwise import DTYPES
from targets.torch_import.values import Call, Known

ops = torch.ops.quantized_decomposed
_GRIDS = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)


def _grid(call: Call) -> torch.dtype:
    """The integers' type: of the zero point, of what is dequantized, or as `output_dtype` says."""
    if call.has(2):
        zero_point = call.values[2]
        array = zero_point.array if isinstance(zero_point, Known) else None
        found = torch.from_numpy(array.reshape(-1)[:0].copy()).dtype if array is not None else call.tensor(2).dtype
    elif call.node.op_type == "DequantizeLinear":
        found = call.tensor(0).dtype
    else:
        found = DTYPES.get(onnx_ir.DataType(call.integer("output_dtype", 0) or onnx_ir.DataType.UINT8), torch.float32)
    if found not in _GRIDS:
        call.refuse(f"is of {str(found).removeprefix('torch.')}, which torch has no quantized operators of")
    return found


def _settings(call: Call, rank: int) -> tuple[bool, tuple[Any, ...]]:
    """Whether there is one scale, and what stands behind the tensor: scales, zero points, (axis,) ends and type."""
    if call.integer("block_size", 0):
        call.refuse("has scales for blocks of an axis", "quantize per tensor or per channel")
    grid = _grid(call)
    ends = torch.iinfo(grid)
    scale = call.known(1)
    zero_point = call.known(2) if call.has(2) else np.zeros_like(scale, np.int64)
    if scale.size == 1:
        return True, (float(scale.item()), int(zero_point.item()), ends.min, ends.max, grid)
    axis = call.integer("axis", 1)
    axis = axis + rank if axis < 0 else axis
    zero_points = call.constant(zero_point.astype(np.int64), "zero_points")
    return False, (call.tensor(1), zero_points, axis, ends.min, ends.max, grid)


def _quantize(call: Call) -> Tensor:
    x = call.tensor(0)
    single, settings = _settings(call, x.dim())
    found: Tensor = (ops.quantize_per_tensor if single else ops.quantize_per_channel)(x, *settings)
    return found


def _dequantize(call: Call) -> Tensor:
    x = call.tensor(0)
    single, settings = _settings(call, x.dim())
    found: Tensor = (ops.dequantize_per_tensor if single else ops.dequantize_per_channel)(x, *settings)
    return found


OPERATORS: dict[str, Callable[[Call], Any]] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
