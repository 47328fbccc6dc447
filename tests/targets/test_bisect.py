"""The node that a runtime gets wrong is the one that is named."""

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kdc.cli.main import app
from kdc.core.errors import TargetError
from targets import bisect as module
from targets.bisect import bisect
from targets.onnxruntime import OnnxRuntime


@pytest.fixture
def chain(tmp_path):
    """Linear, ReLU, quantized and back, linear, softmax: [batch, 8] to [batch, 4]."""
    rng = np.random.default_rng(5)
    weights = {
        "body.0.weight": rng.normal(size=(8, 8)).astype(np.float32),
        "head.weight": rng.normal(size=(8, 4)).astype(np.float32),
        "scale": np.float32(0.05),
        "zero": np.uint8(0),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "body.0.weight"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("QuantizeLinear", ["b", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["c"], "dequantize"),
        helper.make_node("MatMul", ["c", "head.weight"], ["d"], "second"),
        helper.make_node("Softmax", ["d"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path = tmp_path / "chain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


class Wrong(OnnxRuntime):
    """A runtime that computes one node otherwise."""

    def __init__(self, name, change):
        self.name, self.change = name, change

    def build(self, onnx_path, folder, device):
        model = onnx.load(onnx_path)
        for node in model.graph.node:
            if node.name == self.name:
                self.change(node)
        onnx.save(model, onnx_path)
        return super().build(onnx_path, folder, device)


def leaky(node):
    node.op_type = "LeakyRelu"
    node.attribute.append(helper.make_attribute("alpha", 0.01))


def along_the_batch(node):
    node.attribute.append(helper.make_attribute("axis", 0))


@pytest.mark.parametrize(
    ("name", "change", "operator", "value"),
    [("relu", leaky, "Relu", "b"), ("softmax", along_the_batch, "Softmax", "y")],
)
def test_a_node_that_computes_something_else_is_named_and_those_behind_it_are_not(
    chain, device, monkeypatch, name, change, operator, value
):
    monkeypatch.setattr(module, "running", lambda device: Wrong(name, change))
    found = bisect(chain, device.model_copy(update={"batch": 3}))
    assert found.first is not None
    assert (found.first.node, found.first.operator, found.first.value) == (name, operator, value)
    assert found.first.error > found.first.allowed
    assert found.error > 0
    assert found.unchecked == ()


def test_a_product_that_is_wrong_is_told_with_the_module_of_its_weights(chain, device, monkeypatch):
    def swapped(node):
        node.op_type, node.input[1] = "Add", node.input[0]  # 2c, of another shape

    monkeypatch.setattr(module, "running", lambda device: Wrong("first", swapped))
    found = bisect(chain, device)
    assert (found.first.node, found.first.module) == ("first", "body.0")


@pytest.mark.parametrize("target", ["cpu-ort", "cpu-openvino"])
def test_a_runtime_that_keeps_to_onnx_has_no_such_node(chain, target):
    from targets.device import load_device

    if target == "cpu-openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    found = bisect(chain, load_device(target))
    assert found.first is None
    assert found.error < 1e-4
    assert found.nodes == 6


def test_a_node_that_the_reference_does_not_know_is_told_and_passed_over(chain, device, monkeypatch):
    known = module._reference

    def forgetful(model):
        return None if any(node.op_type == "Softmax" for node in model.graph.node) else known(model)

    monkeypatch.setattr(module, "_reference", forgetful)
    found = bisect(chain, device)
    assert (found.first, found.unchecked) == (None, ("softmax",))


def test_the_command_prints_what_was_found(chain, tmp_path):
    shown = CliRunner().invoke(app, ["verify", str(chain), "--bisect"], catch_exceptions=False).stdout
    assert "no node differs by itself, of 6 that were checked" in shown
    (tmp_path / "text.onnx").write_text("hello, I am no model")
    with pytest.raises(TargetError, match=r"text\.onnx: is no whole ONNX file"):
        CliRunner().invoke(app, ["verify", str(tmp_path / "text.onnx"), "--bisect"], catch_exceptions=False)
