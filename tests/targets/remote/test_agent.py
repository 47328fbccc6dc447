"""The agent by itself, over a pipe: what it needs, and that nothing of it is left."""

import ast
import io
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
from remote_devices import device_python, processes_with, until
from sockets import bound_by

from kdc.core.errors import TargetError
from targets.job import fields_of
from targets.remote import bundle as bundling
from targets.remote.agent import lock_path
from targets.remote.bundle import LEAST_PYTHON, bundle
from targets.remote.line import Line
from targets.runtime import _MODULES

RUNTIME = "targets.onnxruntime"


@pytest.fixture
def start(tmp_path, python, device):
    """Agents in folders of their own; what they were asked first is a hello."""
    lines = []

    def make(name="agent-1", python=python, silence=30.0, wait=5.0, who="alice@laptop"):
        folder = tmp_path / "kdc" / name
        folder.mkdir(parents=True)
        (folder / "agent.pyz").write_bytes(bundle(RUNTIME))
        command = [str(python), str(folder / "agent.pyz"), "serve"]
        line = Line(command, b"", lambda ended: TargetError(f"gone: {ended.code} {ended.said}"))
        lines.append(line)
        if "folder" in line.greeting:
            line.hello = line.ask("hello", device=fields_of(device), who=who, wait=wait, silence=silence)
        line.folder = folder
        return line

    yield make
    for line in lines:
        line.close()


def test_the_agent_holds_no_module_that_needs_more_than_the_device_has():
    with zipfile.ZipFile(io.BytesIO(bundle(RUNTIME))) as archive:
        names = set(archive.namelist())
    assert {"targets/worker.py", "targets/remote/agent.py", "targets/run_cascade.py", "kdc/__init__.py"} <= names
    assert not {"kdc/core/device.py", "targets/measure.py", "targets/process.py", "targets/remote/ssh.py"} & names


@pytest.mark.parametrize("runtime", _MODULES.values())
def test_what_goes_to_a_device_imports_numpy_and_its_own_alone(runtime):
    """Where a file is read; what a function imports is there when it is called."""
    with zipfile.ZipFile(io.BytesIO(bundle(runtime))) as archive:
        for name in archive.namelist():
            modules = {
                module.split(".")[0]
                for node in ast.parse(archive.read(name)).body
                for module in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            if runtime_part(name, runtime):
                assert modules <= {"numpy", "kdc", "targets"} | sys.stdlib_module_names, name


def runtime_part(name, runtime):
    """Whether this is imported at the top of what the agent, the worker or the runtime import; not by a function of it."""
    reached, waiting = set(), ["targets.remote.agent", "targets.worker", runtime]
    while waiting:
        module = waiting.pop()
        path = bundling.ROOT / (bundling._place(module) or "none")
        if module in reached or not path.is_file():
            continue
        reached.add(module)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in bundling.OURS:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return name in {bundling._place(module) for module in reached}


def test_the_agent_is_written_for_the_least_python_that_it_asks_for():
    with zipfile.ZipFile(io.BytesIO(bundle(RUNTIME))) as archive:
        for name in archive.namelist():
            ast.parse(archive.read(name), feature_version=(3, 6) if name == "__main__.py" else LEAST_PYTHON)


def test_the_same_sources_give_the_same_agent():
    assert bundle(RUNTIME) == bundle.__wrapped__(RUNTIME)


def test_the_agent_needs_numpy_and_the_runtime_alone(start):
    """The device's Python of these tests refuses to import what else kdc uses."""
    line = start()
    facts = line.hello["ok"]
    assert facts["missing"] is None
    assert facts["python"] == sys.version.split()[0]


def test_a_device_without_numpy_or_the_runtime_says_so(start, tmp_path):
    line = start("agent-2", device_python(tmp_path / "bare", ("numpy",)))
    assert line.greeting["refused"] == "numpy"
    assert line.greeting["python"]
    assert not line.folder.exists()
    line = start("agent-3", device_python(tmp_path / "half", (), ("numpy", "numpy.libs")))
    assert "the runtime onnxruntime is not installed" in line.hello["ok"]["missing"]


def test_a_python_that_is_too_old_says_so(start, monkeypatch):
    monkeypatch.setattr(bundling, "LEAST_PYTHON", (99, 0))
    bundle.cache_clear()
    line = start()
    bundle.cache_clear()
    assert line.greeting["refused"] == "python"
    assert line.greeting["found"] == sys.version.split()[0]


def test_the_second_user_is_told_who_has_the_device(start):
    first = start("agent-1", who="alice@laptop")
    second = start("agent-2", who="bob@desk", wait=0.1)
    assert second.hello["held"].startswith("alice@laptop, since ")
    first.close()
    third = start("agent-3", who="carol@home")
    assert "ok" in third.hello


def test_the_lock_of_an_agent_that_was_killed_is_free(start):
    killed = start("agent-1")
    (pid,) = processes_with(killed.folder)
    os.kill(pid, signal.SIGKILL)
    assert "ok" in start("agent-2").hello


def test_what_a_killed_agent_left_is_removed_by_the_next(start):
    killed = start("agent-1")
    (pid,) = processes_with(killed.folder)
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not processes_with(killed.folder))
    old = time.time() - 3600
    os.utime(killed.folder, (old, old))
    alive = start("agent-2")
    os.utime(alive.folder, (old, old))
    assert not killed.folder.exists()
    assert start("agent-3", wait=0.1).hello["held"]
    assert alive.folder.exists()


@pytest.mark.parametrize("end", ["bye", "input", "silence", "term", "hang up", "nonsense"])
def test_nothing_is_left_however_the_conversation_ends(start, end):
    line = start(silence=0.5 if end == "silence" else 30.0)
    (pid,) = processes_with(line.folder)
    if end == "bye":
        line.close()
    elif end == "input":
        line._closed.set()
        line._process.stdin.close()
    elif end == "nonsense":
        line._process.stdin.write(b"nonsense\n")
    elif end != "silence":
        os.kill(pid, signal.SIGTERM if end == "term" else signal.SIGHUP)
    assert until(lambda: not processes_with(line.folder))
    assert not line.folder.exists()


def test_an_agent_in_the_middle_of_a_job_ends_with_its_input(start, device, linear):
    line = start()
    (agent,) = processes_with(line.folder)
    file, _ = linear()
    line.put(file.path, "files/0/linear.onnx")
    path = line.folder / "files/0/linear.onnx"
    assert path.read_bytes() == file.path.read_bytes()
    job = {"device": fields_of(device), "files": [{"path": str(path), "runtime": "onnxruntime"}], "inputs": None}
    job |= {"seed": [0], "cores": None, "slice_seconds": 60.0, "rounds_max": 10**6}
    line._send(json.dumps({"do": "job", "job": json.dumps(job)}).encode() + b"\n")
    line._asking = True
    assert until(lambda: len(processes_with(line.folder)) == 2)
    for pid in processes_with(line.folder):
        assert bound_by(pid) == []  # it talks over its standard input and output alone
    (worker,) = (pid for pid in processes_with(line.folder) if pid != agent)
    given = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    assert {b"ORT_DISABLE_TELEMETRY=1", f"TMPDIR={line.folder}".encode()} <= {*given}
    line.close()
    assert until(lambda: not processes_with(line.folder))
    assert not line.folder.exists()


def test_a_file_that_arrives_changed_or_cannot_be_written_is_refused(start, tmp_path, monkeypatch):
    line = start()
    (tmp_path / "x").write_bytes(b"x" * 3_000_000)
    (line.folder / "taken").write_text("")
    with pytest.raises(TargetError, match=r"cannot be written there: (Not a directory|File exists)"):
        line.put(tmp_path / "x", "taken/x")
    monkeypatch.setattr("targets.remote.line._sha256", lambda path: "0" * 64)
    with pytest.raises(TargetError, match="arrived changed"):
        line.put(tmp_path / "x", "x")
    monkeypatch.undo()
    line.put(tmp_path / "x", "x")
    assert (line.folder / "x").read_bytes() == b"x" * 3_000_000


def test_a_login_that_prints_something_disturbs_nothing(start, tmp_path, python):
    loud = tmp_path / "loud"
    loud.write_text(f"#!/bin/sh\necho 'Welcome to board'\nexec {python} \"$@\"\n")
    loud.chmod(0o755)
    assert "ok" in start(python=loud).hello


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.delenv("KDC_DEVICE_LOCK")
    monkeypatch.setattr("targets.remote.agent.LOCK_FOLDERS", (str(tmp_path),))
    return tmp_path


def test_each_user_of_a_device_has_a_lock_in_a_folder_of_their_own(base):
    assert lock_path() == lock_path() == f"{base}/kdc-{os.geteuid()}/device.lock"
    assert (base / f"kdc-{os.geteuid()}").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link", "file", "open to others", "dangling link"])
def test_a_folder_for_the_lock_that_may_be_somebody_elses_is_refused(base, kind):
    folder = base / f"kdc-{os.geteuid()}"
    (base / "elsewhere").mkdir(mode=0o700)
    match kind:
        case "link":
            folder.symlink_to(base / "elsewhere")
        case "dangling link":
            folder.symlink_to(base / "nowhere")
        case "file":
            folder.write_text("")
        case _:
            folder.mkdir()
            folder.chmod(0o777)
    with pytest.raises(TargetError, match="not a folder of this user's alone"):
        lock_path()
    assert list((base / "elsewhere").iterdir()) == []


def test_a_lock_that_is_a_link_is_not_opened(start, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setenv("KDC_DEVICE_LOCK", str(tmp_path / "linked"))
    (tmp_path / "linked").symlink_to(tmp_path / "mine")
    with pytest.raises(TargetError, match="linked cannot be opened"):
        start()
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_lock_holds_no_name_when_nobody_has_the_device(start):
    start().close()
    assert Path(lock_path()).read_text() == ""
