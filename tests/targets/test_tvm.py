"""TVM's own rules: what it needs to compile, what a process that runs its libraries loads, and what the loader keeps."""

import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.driver.sources import versions
from targets import tvm as module
from targets.device import load_device
from targets.runtime import Port, runtime_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def tvm():
    device = load_device("cpu-tvm")
    try:
        return device, runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


def saved(path, nodes, inputs, outputs, weights=()):
    ends = [[helper.make_tensor_value_info(*one) for one in some] for some in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(array, name) for name, array in weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def scaled(path, factor):
    """A file of y = factor * x."""
    nodes, weights = [helper.make_node("Mul", ["x", "k"], ["y"])], [("k", np.float32(factor))]
    return saved(path, nodes, [("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 8])], weights)


def test_several_inputs_and_outputs_of_several_types_keep_their_order(tvm, tmp_path):
    device, runtime = tvm
    path = saved(
        tmp_path / "two.onnx",
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Add", ["rows", "x"], ["sum"]),
         helper.make_node("Neg", ["ids"], ["less"])],
        [("ids", INT64, ["batch"]), ("x", FLOAT, ["batch", 4])],
        [("sum", FLOAT, ["batch", 4]), ("less", INT64, ["batch"])],
        [("table", np.arange(20, dtype=np.float32).reshape(5, 4))],
    )  # fmt: skip
    engine = runtime.load(runtime.build(path, tmp_path / "built", device), device)
    assert engine.inputs == (Port("ids", ("batch",), "int64"), Port("x", ("batch", 4), "float32"))
    for count in (1, 3):
        ids, x = np.arange(count), np.ones((count, 4), np.float32)
        total, less = engine.run([ids, x])
        np.testing.assert_array_equal(total, np.arange(20).reshape(5, 4)[ids] + 1)
        np.testing.assert_array_equal(less, -ids)
    with pytest.raises(TargetError, match="x takes float32, got float64"):
        engine.run([np.arange(1), np.ones((1, 4))])


def test_integers_by_quantize_and_dequantize_are_computed_as_onnx_defines_them(tvm, tmp_path):
    device, runtime = tvm
    rng = np.random.default_rng(5)
    q = rng.integers(-127, 128, (8, 3)).astype(np.int8)
    scale, step, zero = np.array([0.01, 0.02, 0.03], np.float32), np.float32(0.05), np.uint8(100)
    path = saved(
        tmp_path / "int8.onnx",
        [helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
         helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
         helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], axis=1),
         helper.make_node("MatMul", ["xd", "w"], ["y"])],
        [("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 3])],
        [("q", q), ("scale", scale), ("step", step), ("zero", zero)],
    )  # fmt: skip
    x = rng.normal(0, 4, (16, 8)).astype(np.float32)
    rounded = np.clip(np.rint(x / step) + float(zero), 0, 255)
    expected = ((rounded - float(zero)) * float(step)) @ (q.astype(np.float64) * scale)
    (found,) = runtime.load(runtime.build(path, tmp_path / "built", device), device).run([x])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_library_that_took_anothers_place_is_the_one_that_is_loaded(tvm, tmp_path):
    device, runtime = tvm
    x = np.ones((1, 8), np.float32)
    kept = []
    for factor in (2, 3):
        file = runtime.build(scaled(tmp_path / "scaled.onnx", factor), tmp_path / "built", device)
        kept.append(runtime.load(file, device))  # the first is in use as the second is loaded
        assert kept[-1].run([x])[0][0, 0] == factor
    assert kept[0].run([x])[0][0, 0] == 2


def test_the_same_graph_is_compiled_to_the_same_bytes(tvm, tmp_path):
    device, runtime = tvm
    path = scaled(tmp_path / "scaled.onnx", 2)
    first, second = (runtime.build(path, tmp_path / name, device) for name in ("one", "other"))
    assert first.path.read_bytes() == second.path.read_bytes()


def test_no_compiler_is_one_message_with_the_mend(tvm, tmp_path, monkeypatch):
    device, runtime = tvm
    path = scaled(tmp_path / "scaled.onnx", 2)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TargetError, match=r"scaled\.onnx: tvm links .* by a C compiler[\s\S]*install gcc or clang"):
        runtime.build(path, tmp_path / "built", device)
    monkeypatch.setenv("CC", "my-gcc")
    assert module._compiler() == "my-gcc"


def test_another_processors_library_is_not_compiled_here(tvm, tmp_path):
    device, runtime = tvm
    foreign = device.model_copy(update={"architecture": "pdp11"})
    with pytest.raises(TargetError, match=r"the target is pdp11\n.*build the file there"):
        runtime.build(scaled(tmp_path / "scaled.onnx", 2), tmp_path / "built", foreign)


def test_operators_that_tvm_lacks_are_named(tvm, tmp_path):
    device, runtime = tvm
    ends = [("x", FLOAT, ["batch", 8])], [("y", FLOAT, ["batch", 8])]
    path = saved(tmp_path / "odd.onnx", [helper.make_node("Frobnicate", ["x"], ["y"])], *ends)
    with pytest.raises(TargetError, match=r"odd\.onnx: TVM's compiler cannot convert it[\s\S]*Frobnicate"):
        runtime.build(path, tmp_path / "built", device)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_a_process_that_runs_a_library_stays_on_its_core_with_its_threads_and_child_processes(tvm, tmp_path):
    device, runtime = tvm
    file = runtime.build(scaled(tmp_path / "scaled.onnx", 2), tmp_path / "built", device)
    code = """if True:
        import os, sys
        from pathlib import Path
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        mine, hook = os.sched_getaffinity(0), sys.excepthook
        import numpy as np
        from kdc.core.devicefile import DeviceFile
        from targets.device import load_device
        from targets.tvm import RUNTIME
        engine = RUNTIME.load(DeviceFile(Path(sys.argv[1]), "tvm"), load_device("cpu-tvm"))
        engine.run([np.ones((1, 8), np.float32)])
        assert os.sched_getaffinity(0) == mine, os.sched_getaffinity(0)
        assert len(os.listdir("/proc/self/task")) == 1 or sys.platform != "linux"
        assert sys.excepthook is hook
        assert "torch" not in sys.modules and "tvm.relax" not in sys.modules
        import torch
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(file.path)], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_a_broken_library_is_one_message(tvm, tmp_path):
    device, runtime = tvm
    file = runtime.build(scaled(tmp_path / "scaled.onnx", 2), tmp_path / "built", device)
    file.path.write_bytes(file.path.read_bytes()[:100])
    with pytest.raises(TargetError, match=r"scaled\.so: tvm cannot load it"):
        runtime.load(DeviceFile(file.path, "tvm"), device)


def test_its_version_is_that_of_the_package_which_has_another_name(tvm):
    assert versions(("tvm",)) == {"tvm": tvm[1].version()}
    assert versions(("no-such-runtime",)) == {"no-such-runtime": "absent"}
