"""A file gets the metric that it has at the batch that its target runs, and none of another batch."""

import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from running_cases import copy_case

from kdc.core.data import Split
from kdc.core.errors import TargetError
from kdc.core.observe import Progress
from kdc.core.spec import DeviceFile
from kdc.core.store import Store
from kdc.driver.evaluate import REPORTED, Evaluation, engines, run_over
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Steps
from passes import PASSES
from targets.device import load_device
from targets.onnxruntime import OnnxRuntime
from targets.runtime import Port, runtime_of

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
    found, _ = run_over([engine], Split((x,), torch.zeros(7)), batch)
    rows = [np.arange(start, start + batch) % 7 for start in range(0, 7, batch)]
    expected = np.concatenate([engine.run([x.numpy()[row]])[0] for row in rows])[:7]
    np.testing.assert_array_equal(found, expected)
    whole, _ = run_over([engine], Split((x,), torch.zeros(7)), 7)
    assert np.abs(found - whole).max() > 0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("samples", [1, 249, 251, 1100])
def test_several_engines_share_the_samples_and_give_them_in_their_order(count, samples):
    at_work, most, told = set(), [], []

    class Engine:
        inputs = (Port("x", ("batch", 2), "float32"),)
        outputs = inputs

        def run(self, inputs):
            assert id(self) not in at_work  # one thread at a time
            at_work.add(id(self))
            most.append(len(at_work))
            time.sleep(1e-4)
            at_work.remove(id(self))
            return [inputs[0] * 2, inputs[0][:, 0]]

    x = torch.arange(2.0 * samples).reshape(-1, 2)
    found, taken = run_over([Engine() for _ in range(count)], Split((x,), torch.zeros(samples)), 2, told.append)
    np.testing.assert_array_equal(found, 2 * x)
    np.testing.assert_array_equal(taken, x[:, 0])
    assert told == [*range(250, samples, 250), samples]
    assert max(most) == min(count, len(told))


def test_one_engine_alone_runs_in_the_thread_that_loaded_it():
    """CUDA's contexts are bound to it, for one."""
    threads = set()

    class Engine:
        inputs = outputs = (Port("x", ("batch", 2), "float32"),)

        def run(self, inputs):
            threads.add(threading.get_ident())
            return list(inputs)

    run_over([Engine()], Split((torch.zeros(600, 2),), torch.zeros(600)), 1)
    assert threads == {threading.get_ident()}


def test_a_fault_of_one_engine_ends_the_others_work():
    done = []

    class Engine:
        inputs = (Port("x", ("batch", 2), "float32"),)
        outputs = inputs

        def run(self, inputs):
            if inputs[0][0, 0] == 600:
                raise TargetError("no such sample")
            done.append(1)
            time.sleep(1e-4)
            return list(inputs)

    x = torch.arange(10_000.0)[:, None].expand(-1, 2)
    with pytest.raises(TargetError, match="no such sample"):
        run_over([Engine(), Engine()], Split((x,), torch.zeros(len(x))), 1)
    assert len(done) < 2000


@pytest.mark.parametrize("target", ["cpu-ort", "cpu-openvino"])
def test_as_many_engines_are_loaded_as_the_cores_can_run_and_none_for_a_few_samples(target, tmp_path, monkeypatch):
    device = load_device(target)
    try:
        runtime = runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("kdc.driver.evaluate.allowed_cores", lambda: 4)
    file = runtime.build(minus_mean(tmp_path / "m.onnx").path, tmp_path / "built", device)
    assert [len(engines(file, device, samples)) for samples in (1, 499, 501, 10_000)] == [1, 1, 2, 4]
    assert len(engines(file, device.model_copy(update={"threads": 2}), 10_000)) == 2


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
