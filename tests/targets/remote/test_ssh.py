"""A device by way of a real sshd on loopback: the same measuring, and clear words when something is in its way."""

import json
import os
import signal
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import typer
from remote_devices import device_python, folders_in, processes_with, until
from typer.testing import CliRunner

from kdc.cli.profile import profile
from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.answers import answers
from targets.device import load_device
from targets.measure import Settings, compare
from targets.over_inputs import over_inputs
from targets.process import Workplace
from targets.quick import peak_memories, quick_latencies
from targets.remote import site, ssh
from targets.stream import streamed

SHORT = Settings(seconds=0.5, processes_min=3, processes_max=3, slice_seconds=0.02)


def test_a_comparison_is_made_there_and_nothing_is_left(there, linear, sshd):
    small, large = linear("small.onnx", 8, 8)[0], linear("large.onnx", 300, 300, external=True)[0]
    found = compare(small, large, there, settings=SHORT)
    assert [len(process) for process in found.samples_ns] == [3, 3]
    assert found.environment["device"] == f"ssh://{sshd.user}@127.0.0.1:{sshd.port}"
    assert found.environment["onnxruntime"]
    assert found.environment["machine"] in ("x86_64", "aarch64")
    assert not found.candidate.latency.emulated
    assert found.candidate.peak_memory_mb >= 0
    assert folders_in(sshd.cache) == []
    assert processes_with(sshd.cache) == []


def test_the_host_can_say_that_a_device_is_emulated(there, linear):
    emulated = there.model_copy(update={"address": f"{there.address}&emulated=yes"})
    found = compare(linear()[0], None, emulated, settings=SHORT)
    assert found.candidate.latency.emulated
    assert any(note.startswith("emulated: ") for note in found.notes)


def test_real_inputs_and_single_inputs_are_timed_there(there, linear):
    file, _ = linear()
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    assert quick_latencies([file], there, [x], seconds=0.02)[0] > 0
    assert peak_memories([file], there, [x])[0] >= 0
    assert len(over_inputs([file], there, [x], processes=2).of(0)) == 20


def test_a_stream_is_run_there(there, linear):
    found = streamed(linear()[0], there, 2_000_000, states=(), seconds=0.05)
    assert found.environment["device"].startswith("ssh://")
    assert found.states == ()
    assert found.paced.n >= 3 * found.paced.processes


def test_answers_come_from_there(there, linear):
    file, weight = linear()
    x = np.random.default_rng(1).normal(size=(7, 8)).astype(np.float32)
    (y,) = answers(file, there, [x])
    np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-6)
    (here,) = answers(file, there.model_copy(update={"address": None}), [x])
    np.testing.assert_array_equal(y, here)


def test_answers_take_whole_batches(device, linear):
    file, _ = linear("two.onnx", free=2)
    with pytest.raises(TargetError, match="takes 2 inputs at a time, and there are 3"):
        answers(file, device, [np.zeros((3, 8), np.float32)])


def test_profile_takes_a_device(there, linear):
    app = typer.Typer()
    app.command()(profile)
    arguments = [str(linear()[0].path), "--device", there.address, "--seconds", "0.3"]
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["environment"]["device"].startswith("ssh://")
    table = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert found["environment"]["device"] in table.replace("\n", "")


def test_the_devices_own_errors_name_the_file_here(there, tmp_path, linear):
    broken = tmp_path / "broken.onnx"
    whole = linear()[0].path.read_bytes()
    broken.write_bytes(whole.replace(b"MatMul", b"MatMux"))
    with Workplace(None, there) as place, pytest.raises(TargetError, match="cannot load it") as error:
        place.run(place.job([DeviceFile(broken, "onnxruntime")], there, (0,)))
    assert str(broken) in str(error.value)
    assert str(error.value).startswith("on ssh://")


def test_files_are_copied_once_and_anew_when_they_change(there, linear, monkeypatch):
    file, _ = linear()
    with Workplace(None, there) as place:
        put = []
        original = place._site._line.put
        monkeypatch.setattr(place._site._line, "put", lambda path, name: (put.append(name), original(path, name)))
        job = replace(place.job([file], there, (0,)), mode="memory")
        place.run(job)
        place.run(job)
        assert put == ["files/0/linear.onnx"]
        linear("linear.onnx", 8, 16)
        place.run(job)
        assert put == ["files/0/linear.onnx"] * 2


def test_a_line_that_is_cut_in_the_middle_is_told_and_leaves_nothing_there(there, linear, sshd):
    place = Workplace(None, there)
    job = replace(place.job([linear()[0]], there, (0,)), slice_seconds=60.0, rounds_max=10**6)
    (folder,) = folders_in(sshd.cache)

    def cut():
        assert until(lambda: len(processes_with(folder)) == 2)  # the agent and what measures
        os.kill(place._site._line._process.pid, signal.SIGKILL)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(TargetError, match=r"the device is gone: the connection was lost in the middle"), place:
        place.run(job)
    cutter.join()
    assert until(lambda: not processes_with(folder))
    assert not folder.exists()


def test_a_device_that_dies_in_the_middle_is_told(there, linear, sshd):
    place = Workplace(None, there)
    (folder,) = folders_in(sshd.cache)
    (agent,) = processes_with(folder)
    os.kill(agent, signal.SIGKILL)
    with pytest.raises(TargetError, match="the device is gone"), place:
        place.run(place.job([linear()[0]], there, (0,)))


def test_an_interrupt_while_it_connects_leaves_nothing_there(there, sshd, monkeypatch):
    def interrupted(self, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("targets.remote.line.Line._answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Workplace(None, there)
    assert until(lambda: not processes_with(sshd.cache))
    assert folders_in(sshd.cache) == []


def test_a_ctrl_c_in_the_middle_leaves_nothing_there(there, linear, sshd):
    place = Workplace(None, there)
    job = replace(place.job([linear()[0]], there, (0,)), slice_seconds=60.0, rounds_max=10**6)
    (folder,) = folders_in(sshd.cache)

    def interrupt():
        assert until(lambda: len(processes_with(folder)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=interrupt)
    user.start()
    with pytest.raises(KeyboardInterrupt), place:
        place.run(job)
    user.join()
    assert until(lambda: not processes_with(folder))
    assert folders_in(sshd.cache) == []


def test_a_runtime_that_hangs_there_is_killed_and_the_device_stays(there, linear, sshd):
    with Workplace(None, there) as place:
        job = replace(place.job([linear()[0]], there, (0,)), slice_seconds=60.0, rounds_max=10**6)
        with pytest.raises(TargetError, match="not done after 2 s, and was killed"):
            place.run(replace(job, limit_seconds=2.0))
        assert len(processes_with(folders_in(sshd.cache)[0])) == 1
        assert place.run(replace(job, slice_seconds=0.0, rounds_max=3)).timings


def test_two_users_at_once_are_held_apart(there, monkeypatch):
    monkeypatch.setattr(site, "WAIT_SECONDS", 0.1)
    with Workplace(None, there):
        with pytest.raises(TargetError, match=rf"in use by .+@{socket.gethostname()}, since"):
            Workplace(None, there)
    with Workplace(None, there):
        pass


def test_a_device_without_what_is_needed_says_the_command_that_installs_it(device, sshd, tmp_path):
    half = device_python(tmp_path / "half", (), ("numpy", "numpy.libs"))
    command = rf"ssh -p {sshd.port} {sshd.user}@127\.0\.0\.1 .*-m pip install numpy onnxruntime"
    with pytest.raises(TargetError, match=rf"has no onnxruntime[\s\S]*{command}"):
        Workplace(None, device.model_copy(update={"address": sshd.address(half)}))
    bare = device_python(tmp_path / "bare", ("numpy",))
    with pytest.raises(TargetError, match=rf"has no numpy[\s\S]*{command}"):
        Workplace(None, device.model_copy(update={"address": sshd.address(bare)}))
    with pytest.raises(TargetError, match="there is no /no/python on the device"):
        Workplace(None, device.model_copy(update={"address": sshd.address("/no/python")}))
    assert folders_in(sshd.cache) == []


def test_a_stranger_and_a_wrong_host_are_refused(there, sshd, monkeypatch):
    monkeypatch.setenv("KDC_SSH", f"ssh -F {sshd.client('known', 'stranger')}")
    with pytest.raises(TargetError, match=r"refuses to let you in\n.*Permission denied[\s\S]*ssh-copy-id"):
        Workplace(None, there)
    other = " ".join((sshd.folder / "stranger.pub").read_text().split()[:2])
    (sshd.folder / "wrong").write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    (sshd.folder / "none").write_text("")
    for known in ("wrong", "none"):
        monkeypatch.setenv("KDC_SSH", f"ssh -F {sshd.client(known, 'user')}")
        with pytest.raises(TargetError, match="its host key"):
            Workplace(None, there)


def test_a_device_that_is_off_is_told(device, sshd):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(TargetError, match="nothing listens there"):
        Workplace(None, device.model_copy(update={"address": f"ssh://127.0.0.1:{port}"}))


def test_a_device_that_says_nothing_is_given_up(device, sshd, monkeypatch):
    """The connection is made, and no SSH follows."""
    monkeypatch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ssh://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TargetError, match="cannot be reached"):
            Workplace(None, device.model_copy(update={"address": address}))


def test_a_missing_ssh_is_told(there, monkeypatch):
    monkeypatch.setenv("KDC_SSH", "no-such-ssh")
    with pytest.raises(TargetError, match="there is no program 'no-such-ssh'"):
        Workplace(None, there)


def test_a_file_compiled_for_another_processor_is_refused_before_it_is_copied(there, tmp_path, monkeypatch):
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + (243).to_bytes(2, "little")  # RISC-V
    library = tmp_path / "model.so"
    library.write_bytes(header + bytes(44))
    with Workplace(None, there) as place:
        monkeypatch.setattr(type(place._site._runtime), "files", lambda self, file: (file.path,))
        with pytest.raises(TargetError, match=r"model\.so: is compiled for riscv64, and ssh://.* is "):
            place.run(place.job([DeviceFile(library, "onnxruntime")], there, (0,)))


def test_a_profile_of_another_processor_is_refused(there):
    with pytest.raises(TargetError, match=r"on ssh://.*: target cpu-ort: its files cannot be run here: it is riscv64"):
        Workplace(None, there.model_copy(update={"architecture": "riscv64"}))


def test_a_bad_address_is_told_before_anything_is_started():
    with pytest.raises(TargetError, match="is no device's address"):
        load_device("cpu-ort", "board")
