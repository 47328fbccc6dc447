import numpy as np
import onnx_ir
import pytest
import torch
from lowering_zoo import ZOO, images
from onnx import TensorProto, helper, numpy_helper

from kdc.driver.lint import operators
from passes.simplify import Rounds, Simplify

ROUNDS = Rounds(rounds=3)


class Holder:
    """As much of an artifact as the pass touches."""

    def __init__(self, model):
        self.model = model

    def with_model(self, model):
        return Holder(model)


def simplified(model):
    return Simplify().apply(Holder(model), ROUNDS).model


def weights(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("kind", ["exported", "integers"])
def test_simplify_changes_no_output(name, kind, lowered, in_runtime):
    model = getattr(lowered, kind)(name)
    before = onnx_ir.to_proto(model).SerializeToString()
    small = simplified(model)
    assert onnx_ir.to_proto(model).SerializeToString() == before
    assert len(list(small.graph)) <= len(list(model.graph))
    torch.testing.assert_close(in_runtime(small, images(4)), in_runtime(model, images(4)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_integer_weights_stay_behind_their_dequantize_linear(name, lowered):
    def integers(model):
        return sorted((a.dtype.name, a.shape) for a in weights(model).values() if a.dtype == np.int8 and a.ndim > 1)

    assert integers(simplified(lowered.integers(name))) == integers(lowered.integers(name))
    assert "DequantizeLinear" in operators(simplified(lowered.integers(name)))


def test_simplify_twice_is_once(lowered):
    once = simplified(lowered.integers("concat"))
    assert onnx_ir.to_proto(simplified(once)) == onnx_ir.to_proto(once)


def test_constants_are_folded_and_idle_nodes_and_weights_are_dropped():
    w = numpy_helper.from_array(np.full(2, 3.0, np.float32), "w")
    idle = numpy_helper.from_array(np.zeros(9, np.float32), "idle")
    nodes = [
        helper.make_node("Add", ["w", "w"], ["w2"], "fold"),
        helper.make_node("Identity", ["x"], ["same"], "identity"),
        helper.make_node("Exp", ["same"], ["e1"], "e1"),
        helper.make_node("Exp", ["x"], ["e2"], "e2"),
        helper.make_node("Sub", ["e1", "e2"], ["d"], "d"),
        helper.make_node("Sin", ["x"], ["dead"], "dead"),
        helper.make_node("Mul", ["d", "w2"], ["y"], "y"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])
    graph = helper.make_graph(nodes, "g", [x, listed], [y], [w, idle])
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    small = simplified(model)
    assert sorted(node.op_type for node in small.graph) == ["Exp", "Mul", "Sub"]
    assert [value.name for value in small.graph.inputs] == ["x"]
    assert [array.tolist() for array in weights(small).values()] == [[6.0, 6.0]]
