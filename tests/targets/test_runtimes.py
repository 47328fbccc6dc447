"""Each runtime's own rules: what it refuses, what it tells of a model, and where its files can be run."""

import importlib.util
import json
import platform
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from kdc.cli.main import app
from kdc.core.errors import PlanError, TargetError
from kdc.core.spec import DeviceFile
from kdc.driver.plan import make
from passes import Quantize, Route
from targets.device import load_device, names
from targets.measure import Settings, compare
from targets.parts import ready
from targets.runtime import _MODULES, NONE, running, runtime_of

OWN = ("cpu-openvino", "cpu-ncnn", "cpu-mnn", "cpu-executorch", "cpu-litert", "cpu-tvm", "rtx-trt")


def installed(target):
    device = load_device(target)
    try:
        return device, runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


def one_node(path, kind, dtype=TensorProto.FLOAT, shape=("batch", 8), **attributes):
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    imports = [helper.make_opsetid("", 21), *([helper.make_opsetid("ours", 1)] if attributes.get("domain") else [])]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


@pytest.mark.parametrize("target", names())
def test_every_profile_that_ships_has_a_runtime_that_kdc_knows_or_limits_alone(target):
    device = load_device(target)
    assert device.runtime in _MODULES or (device.runtime == NONE and device.memory_mb and device.memory_source)


@pytest.mark.parametrize("target", [name for name in names() if load_device(name).runtime != NONE])
def test_an_absent_runtime_names_the_command_that_installs_it(target, monkeypatch):
    device = load_device(target)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extra = "onnxruntime" if device.runtime == "onnxruntime" else rf"'kdc\[{device.runtime}\]'"
    with pytest.raises(TargetError, match=rf"{device.runtime} is not installed\n.*pip install {extra}$"):
        runtime_of(device)


def test_a_profile_of_limits_alone_can_be_shown_and_not_built_for():
    with pytest.raises(TargetError, match="cortex-m: kdc has no runtime for it"):
        runtime_of(load_device("cortex-m"))


def test_a_runtime_that_has_float32_alone_refuses_a_profile_of_float16(device):
    with pytest.raises(TargetError, match=r"runs onnxruntime in float32 alone[\s\S]*tensorrt-rtx"):
        runtime_of(device.model_copy(update={"floats": "float16"}))


def test_another_processors_target_cannot_be_run_here(device):
    foreign = device.model_copy(update={"architecture": "pdp11"})
    with pytest.raises(
        TargetError, match=rf"cannot be run here: it is pdp11, and this machine is {platform.machine()}"
    ):
        running(foreign)
    assert running(device.model_copy(update={"architecture": platform.machine()}))


def test_a_provider_that_the_build_lacks_is_an_error_that_names_those_it_has(device, linear):
    absent = device.model_copy(update={"providers": ("TensorrtExecutionProvider", "CPUExecutionProvider")})
    with pytest.raises(TargetError, match="has no TensorrtExecutionProvider; it has .*CPUExecutionProvider"):
        running(absent)
    with pytest.raises(TargetError, match="has no TensorrtExecutionProvider"):
        runtime_of(absent).load(linear()[0], absent)
    named = device.model_copy(update={"providers": ("CPUExecutionProvider",)})
    (y,) = running(named).load(linear()[0], named).run([np.ones((1, 8), np.float32)])
    assert y.shape == (1, 4)


@pytest.mark.parametrize("target", ["cpu-ncnn", "cpu-mnn", "cpu-tvm"])
def test_a_target_without_integers_refuses_quantize_before_anything_is_computed(target):
    with pytest.raises(PlanError, match=rf"step 1 quantize: target {target} has no integer format"):
        make([Quantize()], load_device(target))


@pytest.mark.parametrize("target", OWN)
def test_early_exits_are_refused_where_no_host_loop_ships(target):
    with pytest.raises(PlanError, match=r"step 1 route: early exits need the runtime onnxruntime"):
        make([Route()], load_device(target))


@pytest.mark.parametrize("target", OWN)
def test_a_model_that_a_runtime_cannot_take_is_one_message(target, tmp_path):
    device, runtime = installed(target)
    path = one_node(tmp_path / "odd.onnx", "Frobnicate", domain="ours")
    with pytest.raises(TargetError, match=r"odd\.onnx"):
        runtime.build(path, tmp_path / "built", device)


@pytest.mark.parametrize("target", OWN)
def test_a_file_that_is_no_model_is_one_message(target, tmp_path):
    device, runtime = installed(target)
    path = tmp_path / f"text{runtime.suffix}"
    for part in (path, path.with_suffix(".bin")):
        part.write_text("hello, I am no model")
    ports = {"inputs": [["x", ["batch", 8], "float32"]], "outputs": [["y", ["batch", 8], "float32"]]}
    (tmp_path / "text.ports.json").write_text(json.dumps(ports))
    with pytest.raises(TargetError, match="text"):
        runtime.load(DeviceFile(path, device.runtime), device)


@pytest.mark.parametrize("target", ["cpu-openvino", "cpu-ncnn", "cpu-mnn", "cpu-executorch", "cpu-litert", "cpu-tvm"])
def test_an_input_that_does_not_fit_is_refused(target, tmp_path):
    device, runtime = installed(target)
    file = runtime.build(one_node(tmp_path / "relu.onnx", "Relu"), tmp_path / "built", device)
    engine = runtime.load(file, device)
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    np.testing.assert_array_equal(engine.run([x])[0], np.maximum(x, 0))
    with pytest.raises(TargetError, match="cannot run the model"):
        engine.run([np.zeros((1, 9), np.float32)])


@pytest.mark.parametrize("target", ["cpu-openvino", "cpu-ncnn", "cpu-mnn", "cpu-executorch", "cpu-litert", "cpu-tvm"])
def test_pictures_whose_rows_end_at_no_round_address_come_out_as_they_went_in(target, tmp_path):
    device, runtime = installed(target)
    path = one_node(tmp_path / "relu.onnx", "Relu", shape=("batch", 3, 7, 9))
    engine = runtime.load(runtime.build(path, tmp_path / "built", device), device)
    x = np.random.default_rng(4).normal(size=(2, 3, 7, 9)).astype(np.float32)
    before = x.copy()
    np.testing.assert_array_equal(engine.run([x])[0], np.maximum(before, 0))
    np.testing.assert_array_equal(x, before)  # a layer that works in place must not do so on the caller's array


def test_ncnn_is_given_one_sample_of_fixed_size_and_floats(tmp_path):
    device, runtime = installed("cpu-ncnn")
    for path in (
        one_node(tmp_path / "free.onnx", "Relu", shape=("batch", "length")),
        one_node(tmp_path / "four.onnx", "Relu", shape=(4, 8)),
    ):
        with pytest.raises(TargetError, match="one sample of fixed size"):
            runtime.build(path, tmp_path, device)


@pytest.mark.parametrize("target", ["cpu-ncnn", "cpu-mnn"])
def test_inputs_other_than_float32_are_refused_where_kdc_cannot_give_them(target, tmp_path):
    device, runtime = installed(target)
    with pytest.raises(TargetError, match="is int64"):
        runtime.build(one_node(tmp_path / "ids.onnx", "Neg", TensorProto.INT64), tmp_path, device)


def test_tensorrt_rtx_builds_for_the_profiles_compute_capabilities(tmp_path, linear):
    device, runtime = installed("rtx-trt")
    path = linear()[0].path

    def size(*capabilities):
        chosen = device.model_copy(update={"compute_capabilities": capabilities})
        return runtime.build(path, tmp_path / "-".join(capabilities), chosen).path.stat().st_size

    assert size("8.6", "8.9") > size("8.6")  # kernels for each
    with pytest.raises(TargetError, match=r"no compute capability '9\.9'[\s\S]*8\.6"):
        size("9.9")


def test_a_network_tells_its_layers_and_their_formats(linear):
    device, runtime = installed("rtx-trt")
    layers = runtime.layers(linear()[0].path, device)
    assert [layer.kind for layer in layers if layer.kind == "MATRIX_MULTIPLY"] == ["MATRIX_MULTIPLY"]
    assert {one for layer in layers for one in layer.formats} == {"FLOAT"}
    device, runtime = installed("cpu-openvino")
    kinds = {layer.kind for layer in runtime.layers(linear()[0].path, device)}
    assert {"Input", "FullyConnected", "Output"} <= kinds


def test_openvino_computes_in_float32_where_the_processor_would_take_less(tmp_path, linear):
    device, runtime = installed("cpu-openvino")
    source, weight = linear(inputs=256, outputs=64)
    file = runtime.build(source.path, tmp_path / "built", device)
    x = np.random.default_rng(2).normal(size=(1, 256)).astype(np.float32)
    expected = x.astype(np.float64) @ weight
    (found,) = runtime.load(file, device).run([x])
    assert np.abs(found - expected).max() < 1e-5 * np.sqrt(np.mean(expected**2)) * 10  # bfloat16 rounds at 4e-3


def test_a_foreign_file_is_timed_and_its_costs_are_those_of_the_graph_that_it_was_built_from(linear, tmp_path):
    device, runtime = installed("cpu-openvino")
    source = linear()[0].path
    built = ready(source, device)
    assert built.path.suffix == ".xml"
    found = compare(built, None, device, settings=Settings(seconds=0.3, processes_min=3)).candidate
    assert (found.parameters, found.macs) == (32, 32)
    assert found.size_mb == pytest.approx(sum(path.stat().st_size for path in runtime.files(built)) / 1e6)
    alone = ready(built.path, device)
    assert alone == DeviceFile(built.path, "openvino")
    unknown = compare(alone, None, device, settings=Settings(seconds=0.3, processes_min=3)).candidate
    assert (unknown.parameters, unknown.macs) == (None, None)
    assert unknown.sha256 == found.sha256


def test_build_says_what_it_wrote_and_why_it_was_not_run(linear, tmp_path):
    device, runtime = installed("rtx-trt")
    if runtime.cannot_run(device) is None:
        pytest.skip("this machine has an NVIDIA GPU")
    arguments = ["build", str(linear()[0].path), "--target", "rtx-trt", "--out", str(tmp_path / "out"), "--layers"]
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments, catch_exceptions=False).stdout
    assert "linear.rtx" in shown
    assert "MATRIX_MULTIPLY" in shown
    assert "built, and not run: " in shown
    with pytest.raises(TargetError, match="rtx-trt: its files cannot be run here: .*driver"):
        CliRunner().invoke(app, ["profile", str(linear()[0].path), "--target", "rtx-trt"], catch_exceptions=False)


@pytest.mark.parametrize("target", OWN)
def test_a_measuring_process_of_a_runtime_loads_nothing_that_it_does_not_need(target):
    installed(target)
    code = """if True:
        import sys
        from targets.device import load_device
        from targets.runtime import runtime_of
        runtime_of(load_device(sys.argv[1])).prepare()
        allowed = {"torch"} if sys.argv[1] == "cpu-executorch" else set()  # its extension is linked with torch's
        sys.exit(" ".join({"torch", "onnxruntime", "onnx", "onnx_ir"} - allowed & set(sys.modules)) or 0)
    """
    done = subprocess.run([sys.executable, "-c", code, target], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
