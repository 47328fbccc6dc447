"""What runs on the device: it takes files and jobs from its standard input, and gives samples on its standard output.

Started as `python3 agent.pyz serve` in a private folder that holds nothing but that file. A message is a line of JSON; a
"put" is followed by the file's bytes. Answers are lines that begin with `KDC-AGENT `.

It ends, and leaves nothing behind, when it is told so, when its input ends, when nothing is heard for a while (the other
side sends beats), and on SIGTERM and SIGHUP: its process that measures is killed, its folder is removed. Nothing here may
import more than the standard library, numpy and the runtime.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import queue
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from kdc.core.errors import TargetError
from targets import proc
from targets.emulation import architecture, is_emulated
from targets.fresh import run_fresh
from targets.job import Job, device_of
from targets.machine import Watch
from targets.runtime import running, runtime_of
from targets.site import watch

MARK = b"KDC-AGENT "
CHUNK = 2**20
STALE_SECONDS = 60.0  # a younger folder may be of an agent that has not locked it yet
SILENCE_SECONDS = 60.0  # until the other side says another number
LOCK_FOLDERS = ("/tmp", "/data/local/tmp")  # the first that can be written to: the same for all of a user's agents
LOCK = "device.lock"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

Message = dict[str, Any]


class _HeldError(Exception):
    """Another agent has the device; the message says whose."""


class Agent:
    """One conversation. `folder` is its own, and removed at the end."""

    def __init__(self, folder: Path, reading: int, writing: int) -> None:
        self.folder, self._reading, self._writing = folder, reading, writing
        self._silence = SILENCE_SECONDS
        self._asked: queue.Queue[Message] = queue.Queue()
        self._worker: subprocess.Popen[bytes] | None = None
        self._watches: list[Watch] = []
        self._ending = threading.Lock()
        self._own_lock = os.open(folder, os.O_RDONLY)  # as long as it is held, nobody takes the folder for a dead one's
        fcntl.flock(self._own_lock, fcntl.LOCK_EX)
        self._lock: int | None = None

    def serve(self) -> NoReturn:
        """Answer until the end."""
        for number in _SIGNALS:
            signal.signal(number, lambda *_: self.end())
        threading.Thread(target=self._listen, daemon=True).start()
        self._say({"folder": str(self.folder)})
        verbs: dict[str, Callable[[Message], Any]] = {
            "hello": self._hello,
            "put": lambda asked: asked.get("failed"),
            "watch": self._watch,
            "quietest": lambda asked: self._watches[asked["watch"]].quietest(asked["count"]),
            "environment": lambda asked: self._watches[asked["watch"]].environment(),
            "notes": lambda asked: self._watches[asked["watch"]].notes(),
            "job": self._job,
        }
        while True:
            asked = self._asked.get()
            if asked["do"] == "bye":
                self.end(lambda: self._write({"ok": None}))
            try:
                self._say({"ok": verbs[asked["do"]](asked)})
            except _HeldError as error:
                self._say({"held": str(error)})
            except TargetError as error:
                self._say({"error": str(error)})
            except Exception as error:  # a fault of ours, which the other side has to hear of
                self._say({"error": f"the agent failed at {asked['do']!r}: {type(error).__name__}: {error}"})

    def end(self, last: Callable[[], None] = lambda: None) -> NoReturn:
        """Kill the process that measures, remove the folder, and be gone."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:  # one that came now would run on top of this, and wait for it
                signal.signal(number, signal.SIG_IGN)
        self._ending.acquire()  # never released: whoever comes second waits here until the process is no more
        worker = self._worker
        if worker is not None and worker.returncode is None:
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.05)  # what it had open is closed when it is gone
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
        with contextlib.suppress(OSError):
            last()
        os._exit(0)

    def _say(self, answer: Message) -> None:
        try:
            self._write(answer)
        except OSError:  # nobody reads
            self.end()

    def _write(self, answer: Message) -> None:
        data = memoryview(MARK + json.dumps(answer).encode() + b"\n")
        while data:
            data = data[os.write(self._writing, data) :]

    # What the listening thread does: it must be there when the input ends, whatever the main thread waits for.

    def _listen(self) -> NoReturn:
        try:
            stream = _Stream(self._reading, lambda: self._silence)
            while True:
                asked: Message = json.loads(stream.line())
                if asked["do"] == "put":
                    asked["failed"] = self._take(asked, stream)
                if asked["do"] != "beat":
                    self._asked.put(asked)
        except EOFError:
            self.end()
        except Exception:  # what is no message: the other side finds this on standard error
            traceback.print_exc()
            self.end()

    def _take(self, asked: Message, stream: _Stream) -> str | None:
        """Write the file that follows; says what went wrong."""
        path = self.folder / asked["name"]
        sha, left = hashlib.sha256(), int(asked["bytes"])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while left:
                    data = stream.some(min(left, CHUNK))
                    left -= len(data)
                    sha.update(data)
                    file.write(data)
        except OSError as error:
            while left:  # what was sent has to be read, or the next message would not be found
                left -= len(stream.some(min(left, CHUNK)))
            return f"cannot be written there: {error.strerror}"
        return None if sha.hexdigest() == asked["sha256"] else "arrived changed"

    # What the main thread does.

    def _hello(self, asked: Message) -> Message:
        self._silence = float(asked["silence"])
        device = device_of(asked["device"])
        facts = {
            "machine": architecture(),
            "python": platform.python_version(),
            "cpu": proc.cpu_name() or platform.processor() or platform.machine(),
            "emulated": is_emulated(),
            "missing": None,
        }
        try:
            runtime_of(device)
        except TargetError as error:
            return {**facts, "missing": str(error), "executable": sys.executable}
        running(device)  # its profile may be another device's
        self._take_device(str(asked["who"]), float(asked["wait"]))
        self._remove_stale()
        return facts

    def _take_device(self, who: str, wait: float) -> None:
        """Keep other agents off the device as long as this process lives, whatever way it ends."""
        path = lock_path()
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TargetError(
                f"the device's lock {path} cannot be opened: {error.strerror}", do="remove it there; it must be no link"
            ) from error
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    raise _HeldError(os.pread(lock, 1000, 0).decode(errors="replace") or "somebody") from None
                time.sleep(0.2)
        os.ftruncate(lock, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(lock, f"{who}, since {since} on the device's clock (process {os.getpid()} there)".encode(), 0)
        self._lock = lock

    def _remove_stale(self) -> None:
        """Folders of agents that were killed before they could remove them."""
        for other in self.folder.parent.glob(f"{self.folder.name.partition('agent-')[0]}agent-*"):
            with contextlib.suppress(OSError):
                found = other.lstat()
                if other == self.folder or found.st_uid != os.geteuid() or time.time() - found.st_mtime < STALE_SECONDS:
                    continue
                held = os.open(other, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(other, ignore_errors=True)
                finally:
                    os.close(held)

    def _watch(self, asked: Message) -> int:
        self._watches.append(watch(device_of(asked["device"])))
        return len(self._watches) - 1

    def _job(self, asked: Message) -> str:
        job = Job.from_json(asked["job"])
        command = [sys.executable, str(self.folder / "agent.pyz"), "work"]
        try:
            environment = {**os.environ, "TMPDIR": str(self.folder)}  # what it leaves goes with the agent's folder
            return replace(run_fresh(job, self.folder, command, environment, self._started), error=None).as_json()
        finally:
            self._worker = None

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._worker = process


def lock_path() -> str:
    """The file whose lock is the device: one for each of its users, or what KDC_DEVICE_LOCK names there.

    Raises: TargetError where the user's folder for it is somebody else's.
    """
    named = os.environ.get("KDC_DEVICE_LOCK")
    if named:
        return named
    base = next((one for one in LOCK_FOLDERS if os.access(one, os.W_OK)), tempfile.gettempdir())
    folder = f"{base}/kdc-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        Path(folder).mkdir(0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise TargetError(
            f"the device's {folder} is not a folder of this user's alone",
            do="remove it there, or name another file for the lock in the device's environment: KDC_DEVICE_LOCK",
        )
    return f"{folder}/{LOCK}"


class _Stream:
    """Lines and bytes from a file's number; EOFError where it ends, or where nothing comes for `silence()` seconds."""

    def __init__(self, number: int, silence: Callable[[], float]) -> None:
        self._number, self._silence, self._rest = number, silence, b""

    def line(self) -> bytes:
        while b"\n" not in self._rest:
            self._rest += self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def some(self, most: int) -> bytes:
        """At least one byte, at most `most`."""
        data, self._rest = self._rest[:most], self._rest[most:]
        return data or self._read(most)

    def _read(self, most: int = CHUNK) -> bytes:
        ready, _, _ = select.select([self._number], [], [], self._silence())
        data = os.read(self._number, most) if ready else b""
        if not data:
            raise EOFError
        return data


def serve() -> NoReturn:
    """Serve whoever holds the other ends of standard input and output."""
    with contextlib.suppress(OSError):  # it leads its session already, as under sshd
        os.setsid()
    writing = os.dup(1)
    os.dup2(2, 1)  # what a runtime prints must not stand between the answers
    Agent(Path(sys.argv[0]).resolve().parent, 0, writing).serve()
