"""The ends of an integer .tflite in float32, as the ONNX file has them.

The converter leaves out the quantization of an input and the dequantization of an output, so that such a file takes and
gives integers. They are put back as operators of the file: then an application, and kdc, give it the numbers that the model
was trained on, and what quantizing them costs is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16
"""Of constants, by the format's own schema (`force_align: 16`), which its Python writer leaves out."""
_IDENTIFIER = b"TFL3"


class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A constant that is written where its kernels want it."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
        data = None
        if self.data is not None:
            held = bytes(bytearray(self.data))
            builder.StartVector(1, len(held), ALIGNMENT)
            builder.head = builder.Head() - len(held)
            builder.Bytes[builder.Head() : builder.Head() + len(held)] = held
            builder.vectorNumElems = len(held)
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


def with_float_ends(written: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The file with a QUANTIZE at each input that is to be float32 and is an integer, a DEQUANTIZE at each such output.

    Args: inputs, outputs: numpy's names of the types that they are to have, in order.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(written, 0))
    graph = model.subgraphs[0]
    integers = (schema.TensorType.INT8, schema.TensorType.UINT8)

    def wanted(ends: Sequence[int], types: Sequence[str]) -> list[int]:
        pairs = zip(ends, types, strict=True)
        return [int(end) for end, kind in pairs if kind == "float32" and graph.tensors[end].type in integers]

    taken, given = wanted(graph.inputs, inputs), wanted(graph.outputs, outputs)
    if not taken and not given:
        return written
    before, behind = [], []
    for end in taken:
        twin = _twin(graph, end)
        before.append(_operator(model, schema.BuiltinOperator.QUANTIZE, twin, end))
        _rename(model, graph, "inputs", end, twin)
    for end in given:
        twin = _twin(graph, end)
        behind.append(_operator(model, schema.BuiltinOperator.DEQUANTIZE, end, twin))
        _rename(model, graph, "outputs", end, twin)
    graph.operators = [*before, *graph.operators, *behind]
    for buffer in model.buffers:
        buffer.__class__ = AlignedBuffer
    builder = flatbuffers.Builder(len(written) + 1024)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _twin(graph: Any, end: int) -> int:
    """A float32 tensor of the same sizes; the index of it."""
    tensor = graph.tensors[end]
    twin = schema.TensorT()
    twin.shape, twin.shapeSignature = tensor.shape, tensor.shapeSignature
    twin.type, twin.buffer, twin.hasRank = schema.TensorType.FLOAT32, 0, tensor.hasRank
    twin.name = tensor.name + b"_float"
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def _operator(model: Any, kind: int, source: int, result: int) -> Any:
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    if kind not in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 1
        model.operatorCodes.append(code)
        codes.append(kind)
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index(kind)
    operator.inputs, operator.outputs = [source], [result]
    return operator


def _rename(model: Any, graph: Any, side: str, end: int, twin: int) -> None:
    """The twin in the tensor's place, in the graph's ends and in those of its signatures."""
    setattr(graph, side, [twin if index == end else int(index) for index in getattr(graph, side)])
    for signature in model.signatureDefs or ():
        for one in getattr(signature, side):
            if one.tensorIndex == end:
                one.tensorIndex = twin
