"""The peak of activations, against graphs that are counted by hand."""

import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.core.errors import ModelError
from kdc.numerics.liveness import Peak, activation_peak

FLOAT = TensorProto.FLOAT


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def peak(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return activation_peak(onnx_ir.from_proto(model))


def node(kind, inputs, output, name=None, **attributes):
    return helper.make_node(kind, inputs, [output], name or f"make_{output}", **attributes)


X = info("x", [1, 100])  # 400 bytes


def test_a_chain_holds_what_a_node_reads_and_makes_beside_the_callers_input():
    chain = [node("Relu", ["x"], "a"), node("Neg", ["a"], "b"), node("Abs", ["b"], "y")]
    # x stays the caller's; a and b, or b and y, are there together: 3 * 400
    assert peak(chain, [X], [info("y", [1, 100])]) == Peak(1200, ("Neg", "make_b"))


def test_a_skip_connection_stays_until_it_is_read():
    nodes = [node("Relu", ["x"], "a"), node("Neg", ["a"], "b"), node("Abs", ["b"], "c"), node("Add", ["a", "c"], "y")]
    # at Abs: x, a (still to be read), b, c
    assert peak(nodes, [X], [info("y", [1, 100])]) == Peak(1600, ("Abs", "make_c"))


def test_outputs_stay_to_the_end():
    nodes = [node("Relu", ["x"], "o"), node("Neg", ["x"], "b"), node("Abs", ["b"], "y")]
    assert peak(nodes, [X], [info("o", [1, 100]), info("y", [1, 100])]).bytes == 1600


def test_what_no_node_reads_is_gone_after_its_node():
    split = helper.make_node("Split", ["x"], ["a", "rest"], "split", num_outputs=2, axis=1)
    nodes = [split, node("Neg", ["a"], "b"), node("Abs", ["b"], "y")]
    # at Split: x 400, both halves 200 each; then rest is gone: at Neg and Abs 400 + 200 + 200
    assert peak(nodes, [X], [info("y", [1, 50])]) == Peak(800, ("Split", "split"))


def test_weights_and_constants_are_not_activations():
    weight = numpy_helper.from_array(np.zeros((100, 50), np.float32), "w")
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.zeros((1, 50), np.float32), "v")
    )
    nodes = [constant, node("MatMul", ["x", "w"], "a"), node("Add", ["a", "c"], "y")]
    assert peak(nodes, [X], [info("y", [1, 50])], [weight]).bytes == 400 + 200 + 200


def test_free_sizes_are_one_and_types_have_their_width():
    nodes = [node("Cast", ["x"], "a", to=TensorProto.FLOAT16), node("Cast", ["a"], "y", to=TensorProto.INT8)]
    inputs, outputs = [info("x", ["batch", 100])], [info("y", ["batch", 100], TensorProto.INT8)]
    assert peak(nodes, inputs, outputs) == Peak(400 + 200 + 100, ("Cast", "make_y"))


def test_four_bits_are_half_a_byte():
    nodes = [node("Cast", ["x"], "y", to=TensorProto.INT4)]
    assert peak(nodes, [X], [info("y", [1, 100], TensorProto.INT4)]).bytes == 400 + 50


def test_of_a_branch_the_dearer_one_counts():
    then = helper.make_graph([node("Relu", ["x"], "t")], "then", [], [info("t", [1, 100])])
    other = helper.make_graph(
        [node("Neg", ["x"], "p"), node("Abs", ["p"], "q"), node("Relu", ["q"], "e")], "else", [], [info("e", [1, 100])]
    )
    branch = node("If", ["c"], "y", then_branch=then, else_branch=other)
    # x 400, c 1, y 400, and in the longer branch two values at once
    assert peak([branch], [X, info("c", [], TensorProto.BOOL)], [info("y", [1, 100])]).bytes == 801 + 800


def test_a_value_that_only_a_body_reads_is_there_for_it():
    then = helper.make_graph([node("Relu", ["a"], "t")], "then", [], [info("t", [1, 100])])
    other = helper.make_graph([node("Neg", ["a"], "e")], "else", [], [info("e", [1, 100])])
    nodes = [
        node("Relu", ["x"], "a"),
        node("ReduceMax", ["x"], "m", keepdims=0),
        node("Cast", ["m"], "c", to=TensorProto.BOOL),
        node("If", ["c"], "y", then_branch=then, else_branch=other),
    ]
    # at If: x, a, c, y and one value of a branch
    assert peak(nodes, [X], [info("y", [1, 100])]).bytes == 400 * 4 + 1


def test_a_shape_that_cannot_be_inferred_is_named():
    nodes = [node("Reshape", ["x", "s"], "a"), node("Relu", ["a"], "y")]
    with pytest.raises(ModelError, match="'a', which Reshape"):
        peak(nodes, [X, info("s", [2], TensorProto.INT64)], [info("y", None)])
