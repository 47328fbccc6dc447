"""Nothing of kdc's listens beyond loopback, nor looks up a host that the user did not name: whole commands are watched."""

import importlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from network_watch import NetworkWatch, cannot_watch
from running_cases import copy_case
from sockets import Looking

from kdc.core.telemetry import MODULE, VARIABLES
from targets.device import load_device

pytestmark = pytest.mark.skipif(cannot_watch() is not None, reason=str(cannot_watch()))
SHARED = "passes=[{prune: {keep_macs: 0.5, training: {epochs: 1, batch: 32, processes: 2}}}]"


@pytest.fixture
def home(tmp_path):
    """The user's home folder, empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(tmp_path):
    return NetworkWatch(tmp_path)


def watched(watch, home, folder, *command):
    """Run a command to its end: its exit code, its words, and all that it and its processes waited on."""
    unset = {*VARIABLES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name not in unset},
             **watch.environment, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with Looking(process.pid) as looking:
        out, err = process.communicate(timeout=600)
    assert looking.looks > 0
    return process.returncode, out + err, looking.found


def left_in(home):
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def test_the_watch_sees_lookups_connections_and_listening_sockets(watch, home, tmp_path):
    code = """if True:
        import contextlib, socket, time
        for ask in (lambda: socket.getaddrinfo("asked.invalid", 80), lambda: socket.gethostbyname("other.invalid")):
            with contextlib.suppress(OSError):
                ask()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            udp.connect(("192.0.2.1", 53))
        with socket.socket() as everywhere, socket.socket() as here, socket.socket(socket.AF_INET6) as six:
            for one, address in ((everywhere, "0.0.0.0"), (here, "127.0.0.1"), (six, "::")):
                one.bind((address, 0))
                one.listen()
            time.sleep(1)
    """
    _, _, bound = watched(watch, home, tmp_path, "-c", code)
    acts = {(act.what, act.where.rpartition(":")[0] or act.where) for act in watch.beyond_this_machine()}
    lookups = {("lookup", "asked.invalid"), ("lookup", "other.invalid")}
    assert acts == lookups | {("connect", "192.0.2.1"), ("listen", "0.0.0.0"), ("listen", "[::]")}
    assert {one.address for one in bound} == {"0.0.0.0", "127.0.0.1", "::"}
    assert [one.address for one in bound if one.is_loopback] == ["127.0.0.1"]


def test_the_watch_sees_the_telemetry_of_openvino_where_it_is_on(watch, home, tmp_path):
    pytest.importorskip(MODULE)
    pytest.importorskip("openvino")
    code = "from openvino.tools import ovc; import time; time.sleep(1)"
    watched(watch, home, tmp_path, "-c", code)
    assert any("google" in act.where for act in watch.beyond_this_machine() if act.what == "lookup")
    assert left_in(home)


@pytest.mark.slow
def test_a_run_that_shares_a_training_and_measures_keeps_to_this_machine(watch, home, tmp_path):
    folder = copy_case("plain", tmp_path)
    command = ("-m", "kdc.cli.main", "compress", "recipe.yaml", "--out", "run", "--set", SHARED)
    code, said, bound = watched(watch, home, folder, *command)
    assert code in (0, 3), said  # which of them is a matter of timing
    assert watch.beyond_this_machine() == []
    assert left_in(home) == []
    # The trainings' processes do meet, and are seen to.
    assert len({act.pid for act in watch.acts() if act.what == "listen-loopback"}) == 2
    assert bound
    assert all(one.is_loopback for one in bound), bound


def small_model(path):
    """Of one linear layer."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w"], ["y"]), onnx.helper.make_node("Relu", ["y"], ["z"])],
        "small",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 8])],
        [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1, 4])],
        [onnx.numpy_helper.from_array(np.ones((8, 4), np.float32), "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


BUILT = ("cpu-ort", "cpu-openvino", "cpu-mnn", "cpu-ncnn", "cpu-executorch", "cpu-tvm", "iphone-coreml", "rtx-trt")


@pytest.mark.slow
@pytest.mark.parametrize("target", BUILT)
def test_building_for_a_target_and_profiling_there_keep_to_this_machine(watch, home, tmp_path, target):
    device = load_device(target)
    if importlib.import_module(f"targets.{device.runtime.replace('-', '_')}").RUNTIME.missing():
        pytest.skip(f"{device.runtime} is not installed")
    model = small_model(tmp_path / "small.onnx")
    commands = [("build", model, "--target", target, "--out", tmp_path / "built")]
    if target in ("cpu-ort", "cpu-openvino"):
        commands.append(("profile", model, "--target", target, "--seconds", "0.5", "--no-cold"))
    for command in commands:
        code, said, bound = watched(watch, home, tmp_path, "-m", "kdc.cli.main", *command)
        assert code == 0, said
        assert bound == set()
    assert watch.beyond_this_machine() == []
    assert left_in(home) == []
