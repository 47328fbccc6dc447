"""A written ML program held against the ONNX file that it was made of.

Whoever converts can seldom run what came out, so what can be read is compared: what the program takes and gives, that it
computes in the floating point that the device is to have, and that integers which the file has came through as they are:
quantized activations, and the same integer weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdc.core.errors import TargetError
from targets.coreml_package import Program, constants
from targets.runtime import Array, Port

if TYPE_CHECKING:
    import onnx_ir

_OTHER = {"float32": "float16", "float16": "float32"}


def check(
    program: Program, model: onnx_ir.Model, inputs: Sequence[Port], outputs: Sequence[Port], floats: str, path: Path
) -> None:
    """Hold a program to its model.

    Args: inputs, outputs: what it must take and give, sizes fixed where they are known. floats: "float32" or "float16".
    path: the ONNX file's, for the message.

    Raises: TargetError with what differs.
    """
    found = [*_ends(program, inputs, outputs), *_formats(program, floats), *_integers(program, model)]
    if found:
        raise TargetError(f"{path}: what coreml wrote is another model: {'; '.join(found)}")


def _ends(program: Program, inputs: Sequence[Port], outputs: Sequence[Port]) -> list[str]:
    pairs = (("takes", program.inputs, inputs), ("gives", program.outputs, outputs))
    return [
        f"it {verb} {_show(found)}, not {_show(wanted)}"
        for verb, found, wanted in pairs
        if len(found) != len(wanted) or not all(map(_is, found, wanted))
    ]


def _is(found: Port, wanted: Port) -> bool:
    fits = all(isinstance(want, str) or want == got for got, want in zip(found.shape, wanted.shape, strict=False))
    return fits and (found.name, len(found.shape), found.dtype) == (wanted.name, len(wanted.shape), wanted.dtype)


def _show(ports: Sequence[Port]) -> str:
    return ", ".join(f"{port.name} {port.dtype} {list(port.shape)}" for port in ports)


def _formats(program: Program, floats: str) -> list[str]:
    """Values of the other floating point: in a float16 program only casts from and to its ends have float32."""
    ends = {port.name for port in (*program.inputs, *program.outputs)}
    other = Counter(
        one.kind
        for one in program.operations
        for port in one.outputs
        if port.dtype == _OTHER[floats] and port.name not in ends
    )
    return [f"it has {_OTHER[floats]} where {floats} was asked: {dict(other)}"] if other else []


def _integers(program: Program, model: onnx_ir.Model) -> list[str]:
    """Integer weights that are not in the program, and quantization of activations that was lost or came from nowhere.

    Fewer may be there, for what is dequantized and quantized again by one scale stays integers; and their scales may
    differ, for coremltools divides those around an addition by one of them.
    """
    import onnx_ir

    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
    wanted = sum(node.op_type == "QuantizeLinear" for node in nodes)
    there = sum(one.kind == "quantize" for one in program.operations)
    found = [] if min(wanted, 1) <= there <= wanted else [f"it quantizes {there} values, not {wanted}"]
    held = {_digest(values) for values in constants(program).values()}
    for node in nodes:
        source = node.inputs[0]
        if node.op_type != "DequantizeLinear" or source is None or source.const_value is None:
            continue
        values = source.const_value
        if values.dtype in (onnx_ir.DataType.INT8, onnx_ir.DataType.UINT8) and _digest(values.numpy()) not in held:
            found.append(f"it lacks the integers of {source.name!r}")
    return found


def _digest(values: Array) -> tuple[str, int, bytes]:
    """The same for the same numbers in any order: a converter may turn a weight's axes."""
    return values.dtype.name, values.size, np.sort(values, axis=None).tobytes()
