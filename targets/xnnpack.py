"""What XNNPACK can run of a graph, and what ExecuTorch made of it: delegated operators and those left to other kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir

from targets.runtime import Layer

DELEGATED, OWN = "xnnpack", "executorch"
"""Whose kernels run an operator: XNNPACK's, or ExecuTorch's own, most of them written to run anywhere, not to be fast."""

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "Linear", "MatMul"})
_FUSED = frozenset({"Relu", "Clip"})
_ACTIVATIONS = frozenset({"relu", "hardtanh"})
_BOOKKEEPING = frozenset({"getitem", "alloc", "sym_size"})


def fitted(model: onnx_ir.Model) -> None:
    """Change a graph, in place, to what XNNPACK has kernels of, the same numbers coming out."""
    signed(model)
    float_weights_where_outputs_are_float(model)


def float_weights_where_outputs_are_float(model: onnx_ir.Model) -> None:
    """Give, in place, float weights to the layers that XNNPACK has no integer kernel for.

    Its kernels take integers and give integers. A layer with integer weights and a float input or output would run in
    ExecuTorch's own kernels, its weights dequantized anew at each run; with the same weights as floats XNNPACK runs
    it, and gives the same numbers.
    """
    for node in list(model.graph):
        if node.op_type not in _LAYERS or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        maker = None if weight is None else weight.producer()
        if weight is None or maker is None or maker.op_type != "DequantizeLinear":
            continue
        if _reads_integers(node) and _writes_integers(node):
            continue
        values = _dequantized(maker)
        if values is None:
            continue
        name = f"{weight.name}.float"
        if name not in model.graph.initializers:
            model.graph.register_initializer(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(values, name=name)))
        node.replace_input_with(1, model.graph.initializers[name])


def signed(model: onnx_ir.Model) -> None:
    """Move, in place, uint8 activations to int8, which alone XNNPACK has kernels of.

    Integers and zero point go down by 128 together: what they stand for stays the same.
    """
    for node in list(model.graph):
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        if node.op_type != "QuantizeLinear" or value.is_graph_output() or not _has_zero_point(node, np.uint8):
            continue
        if all(reader.op_type == "DequantizeLinear" and _has_zero_point(reader, np.uint8) for reader in readers):
            for one in (node, *readers):
                _shift_zero_point(model.graph, one)


def _has_zero_point(node: onnx_ir.Node, kind: type) -> bool:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = None if value is None else onnx_ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.numpy().dtype == kind


def _shift_zero_point(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    value = node.inputs[2]
    assert value is not None
    tensor = onnx_ir.convenience.get_const_tensor(value)
    assert tensor is not None
    name = f"{value.name}.signed"
    if name not in graph.initializers:
        array = (tensor.numpy().astype(np.int16) - 128).astype(np.int8)
        graph.register_initializer(onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name)))
    node.replace_input_with(2, graph.initializers[name])


def _reads_integers(node: onnx_ir.Node) -> bool:
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _writes_integers(node: onnx_ir.Node) -> bool:
    """Whether a QuantizeLinear alone reads the layer, or the activation that alone reads the layer."""
    reader = _only_reader(node)
    if reader is not None and reader.op_type in _FUSED:
        reader = _only_reader(reader)
    return reader is not None and reader.op_type == "QuantizeLinear"


def _only_reader(node: onnx_ir.Node) -> onnx_ir.Node | None:
    value = node.outputs[0]
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _dequantized(node: onnx_ir.Node) -> Any:
    """The floats of dequantized constants; None where they are computed."""
    tensors = [None if value is None else onnx_ir.convenience.get_const_tensor(value) for value in node.inputs]
    if tensors[0] is None or tensors[1] is None:
        return None
    values, scale = tensors[0].numpy(), tensors[1].numpy()
    zero_point = tensors[2].numpy() if len(tensors) > 2 and tensors[2] is not None else np.zeros_like(scale, np.int8)
    if scale.size > 1:
        axis = node.attributes.get("axis")
        shape = [1] * values.ndim
        shape[1 if axis is None else axis.as_int()] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return ((values.astype(np.int32) - zero_point.astype(np.int32)) * scale).astype(np.float32)


def layers_of(program: Any) -> tuple[Layer, ...]:
    """What became of a graph. program: ExecuTorch's, XNNPACK's parts cut out of it.

    A layer is one operator: its name is that of the ONNX node, its kind whose kernel runs it and which operator it is.
    A quantization that is part of an integer kernel is none: it shows in the format of what that kernel gives.
    """
    return tuple(_layers(program.graph_module))


def _layers(module: Any) -> Iterator[Layer]:
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if "call_delegate" in _operator(node):
            inner = getattr(module, node.args[0].target).original_module
            yield from (_layer(one, DELEGATED) for one in inner.graph.nodes if _computes(one))
        elif _computes(node):
            yield _layer(node, OWN)


def _computes(node: Any) -> bool:
    return node.op == "call_function" and _operator(node) not in _BOOKKEEPING and not _is_implicit(node)


def _is_implicit(node: Any) -> bool:
    """Whether XNNPACK's partitioner made the quantization part of the kernel beside it."""
    from executorch.backends.xnnpack.utils.quant_utils import is_tagged_as_implicit_q_dq

    return bool(is_tagged_as_implicit_q_dq(node))


def _layer(node: Any, whose: str) -> Layer:
    name = next((path.removeprefix("steps.") for path, _ in reversed(_modules(node)) if path.startswith("steps.")), "-")
    return Layer(name, f"{whose} {_operator(node)}", _formats(node))


def _operator(node: Any) -> str:
    """Its short name, as convolution for aten.convolution.default."""
    parts = str(getattr(node.target, "__name__", node.target)).split(".")
    return parts[-2] if len(parts) > 1 else parts[0]


def _formats(node: Any) -> tuple[str, ...]:
    last = node
    for _ in range(2):  # an activation may stand between, in the same kernel
        if len(last.users) != 1:
            break
        (last,) = last.users
        if last.op != "call_function":
            break
        if _is_implicit(last) and _operator(last).startswith("quantize"):
            node = last
        if _operator(last) not in _ACTIVATIONS:
            break
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(str(one.dtype).removeprefix("torch.") for one in values if hasattr(one, "dtype"))


def _modules(node: Any) -> list[tuple[str, Any]]:
    """Where the operator was called, by torch.export: (path of the module, its class), outermost first."""
    return list((node.meta.get("nn_module_stack") or {}).values())
