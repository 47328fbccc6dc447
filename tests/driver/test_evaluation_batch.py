"""A file gets the metric that it has at the batch that its target runs, and none of another batch."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from running_cases import copy_case

from kdc.core.data import Split
from kdc.core.observe import Progress
from kdc.core.spec import DeviceFile
from kdc.core.store import Store
from kdc.driver.evaluate import REPORTED, Evaluation, run_over
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES
from targets.device import load_device
from targets.onnxruntime import OnnxRuntime

FLOAT = TensorProto.FLOAT


def saved(path, nodes, tensors=()):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])], tensors,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return DeviceFile(path, "onnxruntime")


def minus_mean(path):
    """x minus the mean over its batch."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"]), helper.make_node("Sub", ["x", "m"], ["y"])]
    return saved(path, nodes, [axes])


def dynamic_integers(path):
    """x as 8-bit integers whose scale is of the batch, as dynamic quantization does, and back."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return saved(path, nodes)


FILES = {"minus the mean": minus_mean, "dynamic integers": dynamic_integers}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_outputs_are_those_at_the_batch_that_is_asked_for(tmp_path, name, batch):
    device = load_device("cpu-ort")
    engine = OnnxRuntime().load(FILES[name](tmp_path / "m.onnx"), device)
    scales = 10.0 ** torch.arange(7)[:, None]  # so that the companions decide about a small sample's integers
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)) * scales
    found, _ = run_over(engine, Split((x,), torch.zeros(7)), batch)
    rows = [np.arange(start, start + batch) % 7 for start in range(0, 7, batch)]
    expected = np.concatenate([engine.run([x.numpy()[row]])[0] for row in rows])[:7]
    np.testing.assert_array_equal(found, expected)
    whole, _ = run_over(engine, Split((x,), torch.zeros(7)), 7)
    assert np.abs(found - whole).max() > 0


@pytest.mark.parametrize("batch", [1, 4])
def test_a_metric_is_that_at_the_targets_batch_and_is_stored_by_it(tmp_path, monkeypatch, batch):
    folder = copy_case("plain", tmp_path)
    monkeypatch.chdir(folder)
    inputs = load(load_recipe(folder / "recipe.yaml", {}, [], PASSES))
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    split = Split((x,), x.argmax(1))
    device = inputs.device.model_copy(update={"batch": batch})
    inputs = replace(inputs, device=device, data=replace(inputs.data, test=split))
    events = []
    evaluation = Evaluation(Steps(inputs, Store(tmp_path / "store"), events.append))
    outputs, _ = evaluation.test("student", minus_mean(tmp_path / "m.onnx"))
    expected = x.reshape(-1, batch, 4)
    np.testing.assert_allclose(outputs, (expected - expected.mean(1, keepdim=True)).reshape(-1, 4), atol=1e-6)
    told = [event.done for event in events if isinstance(event, Progress)]
    assert told[-1] == 300
    assert len(told) == -(-300 // REPORTED)
    assert evaluation._parts(DeviceFile(tmp_path / "m.onnx", "onnxruntime"), "test")["batch"] == batch
