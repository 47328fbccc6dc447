"""The graph in the patterns that converters know: linear layers, and a DequantizeLinear for each reader.

Products with a constant matrix become one node, Linear, with the weight as torch has it: [outputs, inputs]. Converters
know `linear` with a dequantized weight right before it; a transposition in between hides the integers. A float weight is
transposed here. Integers behind a DequantizeLinear are too, with the axis of their scales.
"""

from __future__ import annotations

import numpy as np
import onnx_ir


def join_linears(model: onnx_ir.Model) -> None:
    """Rewrite, in place, Gemm and MatMul whose second input is a constant matrix, with the bias added behind."""
    for node in list(model.graph):
        if node.op_type not in ("Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        weight, bias = _weight(node), _gemm_bias(node)
        if weight is None or bias is False:
            continue
        addition = None
        if node.op_type == "MatMul":
            addition, bias = _added(node, int(_sizes(weight)[0]))
        last = node if addition is None else addition
        inputs = [node.inputs[0], weight, *([bias] if isinstance(bias, onnx_ir.Value) else [])]
        linear = onnx_ir.Node("", "Linear", inputs, name=node.name)
        linear.outputs[0].name = last.outputs[0].name
        model.graph.insert_before(last, linear)
        _hand_over(model.graph, last.outputs[0], linear.outputs[0])
        for old in (addition, node):
            if old is not None:
                model.graph.remove(old, safe=True)


def part_dequantizers(model: onnx_ir.Model) -> None:
    """Give, in place, each reader of dequantized data a DequantizeLinear of its own.

    A converter makes one integer kernel of what stands between: shared, it would belong to two kernels.
    """
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        value = node.outputs[0]
        for number, (reader, index) in enumerate(list(value.uses())):
            if number == 0 and not value.is_graph_output():
                continue
            again = onnx_ir.node("DequantizeLinear", node.inputs, node.attributes, name=f"{node.name}.{number}")
            again.outputs[0].name = f"{value.name}.{number}"
            model.graph.insert_before(reader, again)
            reader.replace_input_with(index, again.outputs[0])


def _hand_over(graph: onnx_ir.Graph, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _weight(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The second input as [outputs, inputs]; None where it is no constant matrix."""
    value = node.inputs[1]
    turned = node.op_type == "Gemm" and _attribute(node, "transB", 0)
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Transpose":
        value, turned = maker.inputs[0], not turned
    if value is None or len(_sizes(value)) != 2:
        return None
    return value if turned else _transposed(value, node)


def _sizes(value: onnx_ir.Value) -> tuple[int, ...]:
    """The sizes of a constant or of a dequantized constant; none where it is neither."""
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and maker.inputs[0] is not None:
        value = maker.inputs[0]
    tensor = onnx_ir.convenience.get_const_tensor(value)
    return () if tensor is None else tuple(tensor.shape.numpy())


def _transposed(value: onnx_ir.Value, node: onnx_ir.Node) -> onnx_ir.Value:
    graph = node.graph
    assert isinstance(graph, onnx_ir.Graph)
    maker = value.producer()
    quantized = maker is not None and maker.op_type == "DequantizeLinear"
    source = maker.inputs[0] if quantized and maker is not None else value
    assert source is not None
    tensor = onnx_ir.convenience.get_const_tensor(source)
    assert tensor is not None
    name = f"{source.name}.transposed"
    constant = graph.initializers.get(name)
    if constant is None:
        constant = onnx_ir.Value(
            name=name, const_value=onnx_ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=name)
        )
        graph.register_initializer(constant)
    if not quantized or maker is None:
        return constant
    attributes = {"axis": 1 - _attribute(maker, "axis", 1) % 2}
    again = onnx_ir.node(
        "DequantizeLinear", [constant, *maker.inputs[1:]], attributes, name=f"{maker.name}.{node.name}"
    )
    again.outputs[0].name = again.name
    graph.insert_before(node, again)
    return again.outputs[0]


def _gemm_bias(node: onnx_ir.Node) -> onnx_ir.Value | bool | None:
    """A Gemm's bias: None where there is none, False where the node is more than a linear layer."""
    if node.op_type == "MatMul":
        return None
    scaled = any(_attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if scaled or _attribute(node, "transA", 0):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return False if bias is not None and len(_sizes(bias)) != 1 else bias


def _added(node: onnx_ir.Node, outputs: int) -> tuple[onnx_ir.Node | None, onnx_ir.Value | None]:
    """The Add of a constant that alone reads a product, and that constant."""
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or readers[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
        return None, None
    addition, index = readers[0].node, readers[0].idx
    other = addition.inputs[1 - index]
    if other is None or _sizes(other) != (outputs,):
        return None, None
    return addition, other


def _attribute(node: onnx_ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    if found is None:
        return default
    return found.as_int() if isinstance(default, int) else found.as_float()
