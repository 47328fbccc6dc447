"""ExecuTorch: what XNNPACK is given and what is left to its own kernels, batches, threads."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_parity import INTEGER_SHARE, floats, images, lowered, quantized  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from kdc.cli.main import app
from kdc.core.errors import TargetError
from targets.device import load_device
from targets.runtime import runtime_of, slow_part

RANDOM = np.random.default_rng(5)


@pytest.fixture
def device():
    return load_device("cpu-executorch")


@pytest.fixture
def runtime(device):
    try:
        return runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


def saved(path, nodes, shape, result, weights):
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def normalized(path):
    weights = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="first"),
        helper.make_node("LayerNormalization", ["r", "scale", "bias"], ["y"], name="norm"),
    ]
    return saved(path, nodes, ["batch", 8], ["batch", 8], weights)


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("name", ["convolutions", "depthwise", "residual", "perceptron"])
def test_xnnpack_runs_all_of_a_network_of_layers(name, form, floats, device, runtime, tmp_path):  # noqa: F811
    artifact = quantized(floats[name], device) if form == "int8" else floats[name]
    path = lowered(artifact, device, tmp_path / "model.onnx")
    layers = runtime.layers(path, device)
    assert {layer.kind.split()[0] for layer in layers} == {"xnnpack"}
    formats = {
        one for layer in layers for one in layer.formats if layer.kind.split()[1] in ("convolution", "linear", "add")
    }
    assert formats == {form}
    products = [layer for layer in layers if layer.kind in ("xnnpack convolution", "xnnpack linear")]
    assert len(products) == sum(node.op_type in ("Conv", "Gemm") for node in onnx.load(path).graph.node)
    assert slow_part(runtime, runtime.build(path, tmp_path / "built", device)) is None


def test_integer_layers_keep_integer_weights(floats, device, runtime, tmp_path):  # noqa: F811
    sizes = {}
    for form, artifact in (("float32", floats["perceptron"]), ("int8", quantized(floats["perceptron"], device))):
        path = lowered(artifact, device, tmp_path / f"{form}.onnx")
        sizes[form] = runtime.build(path, tmp_path / "built", device).path.stat().st_size
    saved_bytes = 3 * (768 * 32 + 32 * 10)  # of four a weight
    assert sizes["float32"] - sizes["int8"] == pytest.approx(saved_bytes, rel=0.1)


def test_what_xnnpack_does_not_run_is_told_by_layer_by_file_and_by_the_command(device, runtime, tmp_path):
    path = normalized(tmp_path / "norm.onnx")
    kinds = {layer.name: layer.kind for layer in runtime.layers(path, device)}
    assert kinds["first"] == "xnnpack relu"
    assert kinds["norm"] == "executorch native_layer_norm"
    file = runtime.build(path, tmp_path / "built", device)
    assert runtime.fallbacks(file) == ("aten::native_layer_norm",)
    arguments = ["build", str(path), "--target", "cpu-executorch", "--out", str(tmp_path / "out"), "--layers"]
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(app, arguments, catch_exceptions=False).stdout
    assert "norm.pte: left to executorch's general kernels" in shown
    assert "aten::native_layer_norm (1)" in shown


def test_a_float_output_of_integer_weights_gives_what_onnx_defines_and_stays_with_xnnpack(device, runtime, tmp_path):
    weight, scales = RANDOM.integers(-127, 128, (5, 8)).astype(np.int8), np.linspace(0.01, 0.05, 5, dtype=np.float32)
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], name="dw", axis=0),
        node("Gemm", ["d", "dw"], ["y"], name="head", transB=1),
    ]
    scale, zero = np.float32(0.02), np.int8(3)
    weights = {"s": np.array(scale), "z": np.array(zero), "w": weight, "ws": scales, "wz": np.zeros(5, np.int8)}
    path = saved(tmp_path / "head.onnx", nodes, [1, 8], [1, 5], weights)
    file = runtime.build(path, tmp_path / "built", device)
    assert runtime.fallbacks(file) == ()
    x = RANDOM.normal(size=(1, 8)).astype(np.float32)
    grid = np.clip(np.round(x / scale) + zero, -128, 127) - zero
    (found,) = runtime.load(file, device).run([x])
    np.testing.assert_allclose(found, (grid * scale) @ (weight * scales[:, None]).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["depthwise", "residual"])
def test_a_file_quantized_to_uint8_for_another_target_gives_the_same_answers(name, floats, device, runtime, tmp_path):  # noqa: F811
    other = load_device("cpu-ort")
    assert other.quantization.activations == "uint8"
    artifact = quantized(floats[name], other)
    path = lowered(artifact, other, tmp_path / "uint8.onnx")
    file = runtime.build(path, tmp_path / "built", device)
    assert runtime.fallbacks(file) == ()
    assert "int8" in {one for layer in runtime.layers(path, device) for one in layer.formats}
    x = images(24, 99)
    (found,) = runtime.load(file, device).run([x.numpy()])
    with torch.no_grad():
        expected, unquantized = artifact.model(x).numpy(), floats[name].model(x).numpy()
    assert (
        np.square(found - expected).mean() <= INTEGER_SHARE["float32"] ** 2 * np.square(expected - unquantized).mean()
    )


def test_batches_of_any_size_run_in_parts_of_the_device_s(device, runtime, tmp_path):
    path = normalized(tmp_path / "norm.onnx")
    four = device.model_copy(update={"batch": 4})
    engine = runtime.load(runtime.build(path, tmp_path / "four", four), four)
    single = runtime.load(runtime.build(path, tmp_path / "one", device), device)
    x = RANDOM.normal(size=(7, 8)).astype(np.float32)
    x.flags.writeable = False
    before = x.copy()
    r = np.maximum(x, 0).astype(np.float64)
    expected = (r - r.mean(1, keepdims=True)) / np.sqrt(r.var(1, keepdims=True) + 1e-5)
    for count in (1, 4, 7):
        np.testing.assert_allclose(engine.run([x[:count]])[0], expected[:count], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(single.run([x])[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(x, before)
    kept = engine.run([x[:4]])[0]
    copy = kept.copy()
    engine.run([x[3:]])
    np.testing.assert_array_equal(kept, copy)  # an answer is the caller's, and the next run leaves it alone


def test_a_fixed_batch_and_another_type_are_refused(device, runtime, tmp_path):
    path = saved(tmp_path / "fixed.onnx", [helper.make_node("Relu", ["x"], ["y"])], [2, 8], [2, 8], {})
    engine = runtime.load(runtime.build(path, tmp_path / "built", device), device)
    assert engine.run([np.ones((2, 8), np.float32)])[0].shape == (2, 8)
    with pytest.raises(TargetError, match=r"x takes float32 \[2, 8\], got float32 \[3, 8\]"):
        engine.run([np.ones((3, 8), np.float32)])
    with pytest.raises(TargetError, match=r"x takes float32 \[2, 8\], got float64 \[2, 8\]"):
        engine.run([np.ones((2, 8))])


def test_an_answer_about_a_whole_batch_is_not_put_together_from_parts(device, runtime, tmp_path):
    path = saved(tmp_path / "sum.onnx", [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], ["batch", 8], [], {})
    engine = runtime.load(runtime.build(path, tmp_path / "built", device), device)
    assert engine.run([np.ones((1, 8), np.float32)])[0] == 8
    with pytest.raises(TargetError, match="cannot run 2 samples by a program for 1: y has no batch"):
        engine.run([np.ones((2, 8), np.float32)])


def test_it_runs_in_the_profile_s_number_of_threads(device, runtime, tmp_path):
    from executorch.extension.pybindings import portable_lib

    path = normalized(tmp_path / "norm.onnx")
    file = runtime.build(path, tmp_path / "built", device)
    for threads in (2, 1):
        runtime.load(file, device.model_copy(update={"threads": threads}))
        assert portable_lib._threadpool_get_thread_count() == threads
