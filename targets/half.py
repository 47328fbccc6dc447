"""An ONNX graph in float16 between float32 ends, for runtimes that compute in what the file says."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdc.core.errors import TargetError

# Inputs that are float32 by ONNX's definition, whatever the rest is: (operator, place).
_ALWAYS_FLOAT32 = {("Resize", 1), ("Resize", 2), ("Upsample", 1)}
_LARGEST = float(np.finfo(np.float16).max)


def in_half(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with weights and values in float16; its inputs and outputs stay float32. The model is left as it was.

    Integers, and how they are quantized, stay; their scales become float16 with the values that they scale. Args: name:
    the file's, for the message.

    Raises: TargetError where a weight is larger than float16 can be, or the graph holds others (If, Loop).
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = {
        value
        for node in graph.node
        for place, value in enumerate(node.input)
        if (node.op_type, place) in _ALWAYS_FLOAT32
    }
    for tensor in graph.initializer:
        if tensor.name not in kept:
            tensor.CopyFrom(_tensor(tensor, name))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise TargetError(f"{name}: {node.op_type} '{node.name}' holds a graph of its own, which stays float32")
            if attribute.type == onnx.AttributeProto.TENSOR and not set(node.output) & kept:
                attribute.t.CopyFrom(_tensor(attribute.t, name))
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    del graph.value_info[:]  # whose types no longer hold
    before = [_cast(value.name, f"{value.name}.half", TensorProto.FLOAT16) for value in _floats(graph.input)]
    after = [_cast(f"{value.name}.half", value.name, TensorProto.FLOAT) for value in _floats(graph.output)]
    renamed = {cast.input[0]: cast.output[0] for cast in before} | {cast.output[0]: cast.input[0] for cast in after}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, value in enumerate(names):
                names[place] = renamed.get(value, value)
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return half


def _floats(values: object) -> list[onnx.ValueInfoProto]:
    return [value for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]  # type: ignore[attr-defined]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast.{target}", to=to)


def _tensor(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """A float32 tensor as float16; another as it is."""
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    array = numpy_helper.to_array(tensor)
    if array.size and float(np.abs(array[np.isfinite(array)]).max(initial=0)) > _LARGEST:
        raise TargetError(
            f"{name}: the weight {tensor.name!r} holds a value above {_LARGEST:g}, the largest in float16"
        )
    return numpy_helper.from_array(array.astype(np.float16), tensor.name)
