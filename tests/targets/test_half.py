"""A graph in float16 is the same graph, rounded, between float32 ends."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kdc.core.errors import TargetError
from targets.device import load_device
from targets.half import in_half
from targets.runtime import runtime_of


def model(weight, nodes=None, extra=()):
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w"), *extra],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


WEIGHT = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)


def test_values_are_rounded_to_float16_and_the_ends_stay_float32():
    whole = model(WEIGHT)
    before = whole.SerializeToString()
    half = in_half(whole, "m.onnx")
    onnx.checker.check_model(half, full_check=True)
    assert whole.SerializeToString() == before
    (y,) = ReferenceEvaluator(half).run(None, {"x": X})
    assert y.dtype == np.float32
    exact = np.maximum(X.astype(np.float64) @ WEIGHT, 0)
    assert 0 < np.abs(y - exact).max() < 9 * 2**-11 * np.abs(X).max() * np.abs(WEIGHT).sum(0).max()
    assert half.graph.initializer[0].data_type == TensorProto.FLOAT16


def test_integers_stay_and_their_scales_follow_the_values():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    extra = [numpy_helper.from_array(np.float32(0.03125), "s"), numpy_helper.from_array(np.int8(0), "z")]
    half = in_half(model(WEIGHT, nodes, extra), "m.onnx")
    onnx.checker.check_model(half, full_check=True)
    kinds = {one.name: one.data_type for one in half.graph.initializer}
    assert kinds == {"w": TensorProto.FLOAT16, "s": TensorProto.FLOAT16, "z": TensorProto.INT8}


def test_a_weight_that_float16_cannot_hold_is_named():
    with pytest.raises(TargetError, match=r"m\.onnx: the weight 'w' holds a value above 65504"):
        in_half(model(WEIGHT * 1e6), "m.onnx")


def test_an_engine_of_a_float16_target_has_float16_layers(tmp_path):
    device = load_device("rtx-trt").model_copy(update={"floats": "float16"})
    try:
        runtime = runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])
    path = tmp_path / "m.onnx"
    onnx.save(model(WEIGHT), path)
    layers = runtime.layers(path, device)
    assert [layer.formats for layer in layers if layer.kind == "MATRIX_MULTIPLY"] == [("HALF",)]
    assert layers[-1].formats == ("FLOAT",)
    assert runtime.files(runtime.build(path, tmp_path / "built", device))[0].stat().st_size > 0
