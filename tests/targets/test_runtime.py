"""The seam to runtimes, and ONNX Runtime behind it."""

import importlib.util

import numpy as np
import onnx
import pytest

from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets import onnxruntime as ort
from targets.runtime import Port, feeds, runtime_of


def test_an_engine_computes_what_numpy_computes(device, linear):
    file, weight = linear()
    engine = runtime_of(device).load(file, device)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    (y,) = engine.run([x])
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-6)
    assert engine.inputs == (Port("x", ("batch", 8), "float32"),)
    assert engine.outputs == (Port("y", ("batch", 4), "float32"),)


def test_building_keeps_the_bytes_and_the_weights_beside_them(device, linear, tmp_path):
    file, weight = linear(external=True)
    built = runtime_of(device).build(file.path, tmp_path / "out", device)
    assert built == DeviceFile(tmp_path / "out" / "linear.onnx", "onnxruntime")
    copies = runtime_of(device).files(built)
    assert [path.name for path in copies] == ["linear.onnx", "linear.onnx.data"]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in runtime_of(device).files(file)]
    x = np.ones((1, 8), np.float32)
    np.testing.assert_allclose(runtime_of(device).load(built, device).run([x])[0], x @ weight, rtol=1e-5, atol=1e-6)


def test_building_where_the_file_lies_leaves_it(device, linear, tmp_path):
    file, _ = linear()
    before = file.path.read_bytes()
    assert runtime_of(device).build(file.path, tmp_path, device) == file
    assert file.path.read_bytes() == before


def test_weights_that_are_missing_are_named(device, linear):
    file, _ = linear(external=True)
    (file.path.parent / "linear.onnx.data").unlink()
    with pytest.raises(TargetError, match=r"linear\.onnx\.data, which is not there"):
        runtime_of(device).files(file)


def test_the_smallest_session_is_one_identity():
    model = onnx.load_from_string(ort._SMALLEST)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]
    runtime = ort.OnnxRuntime()
    runtime.prepare()


def test_an_absent_runtime_is_an_error_with_the_command_that_installs_it(device, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match=r"not installed\n.*pip install onnxruntime$"):
        runtime_of(device)


def test_an_unknown_runtime_is_answered_with_the_known_ones(device):
    with pytest.raises(TargetError, match=r"no runtime 'abacus'[\s\S]*onnxruntime"):
        runtime_of(device.model_copy(update={"runtime": "abacus"}))


def test_a_file_that_is_no_model_is_named(device, tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("hello, I am no model")
    with pytest.raises(TargetError, match=r"text\.onnx: onnxruntime cannot load it"):
        runtime_of(device).load(DeviceFile(path, "onnxruntime"), device)
    with pytest.raises(TargetError, match=r"text\.onnx: is no whole ONNX file"):
        runtime_of(device).files(DeviceFile(path, "onnxruntime"))


def test_an_input_that_does_not_fit_is_refused_by_the_runtime(device, linear):
    engine = runtime_of(device).load(linear()[0], device)
    with pytest.raises(TargetError, match="cannot run the model"):
        engine.run([np.zeros((1, 9), np.float32)])


class Stub:
    """An engine that only tells its inputs."""

    outputs = ()

    def __init__(self, *inputs):
        self.inputs = inputs


def draws():
    return np.random.default_rng(0)


def test_real_samples_come_in_batches_in_their_order_and_the_rest_is_left():
    engine = Stub(Port("x", ("n", 2), "float32"), Port("mask", ("n",), "int64"))
    x, mask = np.arange(14.0).reshape(7, 2), np.arange(7)
    batches = feeds(engine, [x, mask], 3, draws())
    assert len(batches) == 2
    np.testing.assert_array_equal(batches[1][0], x[3:6])
    np.testing.assert_array_equal(batches[1][1], [3, 4, 5])
    assert batches[0][0].dtype == np.float32


def test_a_fixed_batch_is_kept():
    (batch, *_) = feeds(Stub(Port("x", (4, 2), "float32")), [np.zeros((9, 2), np.float32)], 1, draws())
    assert batch[0].shape == (4, 2)


def test_random_inputs_have_the_ports_shape_and_type():
    engine = Stub(Port("x", ("n", 3), "float16"), Port("ids", ("n", 5), "int64"), Port("go", ("n",), "bool"))
    for x, ids, go in feeds(engine, None, 2, draws()):
        assert (x.shape, x.dtype) == ((2, 3), np.float16)
        assert (ids.shape, ids.dtype) == ((2, 5), np.int64)
        assert (go.shape, go.dtype) == ((2,), bool)


@pytest.mark.parametrize(
    ("shape", "samples", "message"),
    [
        (("n", 3), [np.zeros((4, 2))], r"takes float32 \[n, 3\], the samples are float64 \[4, 2\]"),
        (("n", 3), [np.zeros(4)], "the samples are"),
        (("n", 3), [np.array([["a"] * 3])], "the samples are <U1"),
        (("n", 3), [], "takes 1 inputs, the samples have 0"),
        ((8, 3), [np.zeros((4, 3))], "batch of 8, there are 4"),
        (("n", "length"), None, r"\[n, length\].*[\s\S]*--samples"),
    ],
)
def test_samples_that_do_not_fit_are_refused(shape, samples, message):
    with pytest.raises(TargetError, match=message):
        feeds(Stub(Port("x", shape, "float32")), samples, 1, draws())
