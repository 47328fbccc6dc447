"""On which x86 processors a file's integer products are right.

Kernels for x86 without VNNI multiply unsigned by signed bytes with `vpmaddubsw`, which adds two products in 16 bits and
saturates: 2 * 255 * 127 is more than 32767. With VNNI, AVX-VNNI or AMX, sums have 32 bits. Weights of at most 64 in
magnitude (7 bits) are right on both: 2 * 255 * 64 = 32640. ONNX Runtime and OpenVINO (oneDNN) have such kernels.
Sources: Intel's Software Developer's Manual, PMADDUBSW; ONNX Runtime, onnxruntime_session_options_config_keys.h,
"session.x64quantprecision"; oneDNN, "Nuances of int8 Computations".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from kdc.core.spec import DeviceFile
from targets.parts import described_by
from targets.runtime import Runtime
from targets.skips import onnx_files

WIDE_SUMS = ("avx512_vnni", "avx_vnni", "amx_int8")
"""The features, in /proc/cpuinfo's names, whose dot products of bytes are summed in 32 bits."""
LARGEST_EXACT_WEIGHT = 32767 // (2 * 255)
_SATURATING = ("onnxruntime", "openvino")
_PRODUCTS = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QAttention", "DynamicQuantizeLSTM",
}  # fmt: skip
_SAME_VALUES = {"DequantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"}


def largest_weight(paths: Sequence[Path]) -> int | None:
    """The largest magnitude of the signed 8-bit weights that a file multiplies; None where it has none.

    Args: paths: the file's ONNX graphs.
    """
    found = [
        int(np.abs(weight.astype(np.int16)).max(initial=0))
        for path in paths
        for node in onnx_ir.traversal.RecursiveGraphIterator(onnx_ir.load(path).graph)
        if node.op_type in _PRODUCTS
        for weight in map(_signed_weight, node.inputs)
        if weight is not None
    ]
    return max(found, default=None)


def integer_notes(files: Sequence[DeviceFile], runtime: Runtime, environment: Mapping[str, Any]) -> list[str]:
    """For each file with integer products, on which processors what was found of it holds; each sentence once.

    Args: environment: as `targets.machine.environment` gives it, of the machine that runs the files.
    """
    found = []
    for file in files:
        described = described_by(file, runtime)
        largest = largest_weight(onnx_files(described)) if described else None
        if largest is not None and file.runtime in _SATURATING:
            found.append(f"{file.path.name}: {_holds_on(largest, environment)}")
    return list(dict.fromkeys(found))


def _holds_on(largest: int, environment: Mapping[str, Any]) -> str:
    features = environment.get("processor_features")
    judged = "integers, judged on a processor with " + (
        ", ".join(features) if features else "features that are unknown"
    )
    if environment.get("architecture") not in (None, "x86_64"):
        return judged  # sums of bytes have 32 bits on Arm
    if largest <= LARGEST_EXACT_WEIGHT:
        return f"{judged}; its weights have 7 bits: no sum saturates on an x86 processor without VNNI"
    make = "a target whose weights have 7 bits (cpu-ort, cpu-openvino) makes files that are right on both"
    if features is not None and not set(WIDE_SUMS) & set(features):
        return f"{judged}; its integers are wrong there: 8-bit weights saturate sums without VNNI; {make}"
    return f"{judged}; its weights have 8 bits: on an x86 processor without VNNI its sums saturate; {make}"


def _signed_weight(value: onnx_ir.Value | None) -> Any:
    """The int8 constant behind a value, [.., ..]; None where there is none."""
    tensor = None
    while value is not None and tensor is None:
        node, tensor = value.producer(), value.const_value
        if node is not None and node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
        elif tensor is None:
            value = node.inputs[0] if node is not None and node.op_type in _SAME_VALUES else None
    if tensor is None or tensor.dtype != onnx_ir.DataType.INT8 or len(tensor.shape) < 2:
        return None
    return tensor.numpy()
