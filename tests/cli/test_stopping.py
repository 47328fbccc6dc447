"""SIGTERM and SIGHUP end a command as Ctrl-C does: it cleans up, says how to go on, and its exit code tells which."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import CODES, Runs, moments, runs

from kdc.cli import stopping

ROOT = Path(__file__).parents[2]
NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}

# The program with a verb that waits, with a folder and processes of kdc's open; the verb is the only thing that is not
# real. `argv[1]` says how it waits.
PROGRAM = """
import contextlib, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from kdc.cli import main
from kdc.core import scratch
from targets.fresh import own_environment, run_process
from targets.tied import tied

def app(standalone_mode):
    how = sys.argv[1]
    with scratch.scratch_folder("work") as folder:
        (folder / "inputs.npz").write_text("a user's samples")
        child = [sys.executable, "-c", "import tempfile, time; tempfile.mkdtemp(); print(1, flush=True); time.sleep(60)"]
        if how == "measuring":
            run_process(child, own_environment(), 60, "the process", lambda process: print("ready", flush=True))
        other = subprocess.Popen(tied(child), stdout=subprocess.PIPE, env=own_environment())
        other.stdout.readline()
        try:
            # As in a library's callback, where what Python raises is lost.
            with contextlib.suppress(KeyboardInterrupt if how == "lost" else ()):
                print(other.pid, flush=True)
                time.sleep(60)
            raise RuntimeError("a process is gone")
        finally:
            other.kill()
            other.wait()
            if how == "slow":
                print("cleaning", flush=True)
                time.sleep(2)

main.app = app
main.main()
"""


@pytest.fixture
def temporary(tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def start(temporary, how, **options):
    return subprocess.Popen(
        [*options.pop("before", ()), sys.executable, "-c", PROGRAM, how],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        **options,
    )


@pytest.mark.parametrize("number", NAMES, ids=lambda number: number.name)
@pytest.mark.parametrize("how", ["waiting", "measuring", "lost"])
def test_a_signal_cleans_up_and_tells_itself_by_the_exit_code(temporary, number, how):
    process = start(temporary, how)
    process.stdout.readline()
    assert len([*temporary.iterdir()]) == 1
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == (
        f"kdc: {NAMES[number]}; finished steps and the last checkpoint are kept: run the same command again to go on\n"
    )
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize("second", NAMES, ids=lambda number: number.name)
def test_a_second_signal_does_not_interrupt_the_cleaning_up(temporary, second):
    process = start(temporary, "slow")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(second)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in said
    assert [*temporary.iterdir()] == []


def test_what_one_process_started_ends_when_it_is_killed_and_the_next_command_sweeps(temporary):
    process = start(temporary, "waiting")
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not runs(child)
    assert [*temporary.iterdir()] != []
    command = [sys.executable, "-m", "kdc.cli.main", "passes"]
    subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, check=True, stdout=subprocess.DEVNULL)
    assert [*temporary.iterdir()] == []


@pytest.mark.skipif(shutil.which("nohup") is None, reason="there is no nohup")
def test_under_nohup_a_hangup_is_ignored(temporary):
    process = start(temporary, "waiting", before=["nohup"])
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.terminate()
    process.communicate()
    assert process.returncode == 143


def test_a_terminal_that_is_closed_ends_the_command_though_nobody_can_be_told(temporary):
    ours, theirs = pty.openpty()

    def own_terminal():
        os.setsid()
        import fcntl
        import termios

        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = start(temporary, "waiting", stdout=theirs, stderr=theirs, preexec_fn=own_terminal)
    os.close(theirs)
    os.read(ours, 100)
    os.close(ours)  # the system sends SIGHUP
    assert process.wait(60) == 129
    assert [*temporary.iterdir()] == []


def test_signals_are_left_to_a_program_that_imports_kdc():
    code = (
        "import signal; all = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP); before = [*map(signal.getsignal, all)]; "
        "import kdc, kdc.api, kdc.cli.main; assert before == [*map(signal.getsignal, all)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_signal_long_after_one_that_was_lost_is_raised_again(monkeypatch):
    monkeypatch.setattr(stopping, "CLEANING_SECONDS", 0.05)
    with stopping.listening():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # it cleans up
            time.sleep(0.1)
        assert stopping.exit_code() == 143
    with contextlib.suppress(KeyboardInterrupt):
        assert stopping.received == []


KILLED = """
teacher: {build: teacher.py:build, weights: teacher.safetensors}
data: data.py:load
budget: {max_drop: 100}
passes:
  - prune: {keep_macs: 0.2, alignment: 4, training: {epochs: 6, batch: 32, checkpoint_seconds: 0.1}}
"""


@pytest.mark.slow
def test_runs_ended_by_each_signal_go_on_to_the_bytes_of_an_undisturbed_run_and_leave_nothing(shapes, tmp_path):
    recipe = shapes / "killed.yaml"
    recipe.write_text(KILLED)
    whole, killed = (Runs(recipe, tmp_path / name, tmp_path / f"{name} logs") for name in ("whole", "killed"))
    code, at = whole.whole()
    for moment in moments(at, ("training", "training", "measuring"), [*CODES], seed=0):
        stopped = killed.stopped(*moment)
        assert stopped.exit_code == CODES[moment[1]]
        assert stopped.alive == 0
        assert moment[1] is signal.SIGKILL or stopped.left == []
    assert killed.whole()[0] == code
    assert killed.bytes_of() == whole.bytes_of()
    assert [*killed.left(), *killed.partial(), *whole.left()] == []
