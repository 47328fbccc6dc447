"""This side of the conversation with an agent: messages out, answers in, and what it means when none comes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from kdc.core.errors import TargetError
from targets.remote.agent import CHUNK, MARK

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # six beats: the agent ends when it heard none of them
ANSWER_SECONDS = 120.0  # an emulated processor takes a while to import numpy
CLOSE_SECONDS = 10.0
SHOWN_LINES = 5


class Ended(NamedTuple):
    """How a transport's program came to its end: its exit code (None: it lives), its last words, when."""

    code: int | None
    said: str
    greeted: bool


Explain = Callable[[Ended], TargetError]


class Line:
    """A conversation over a program's standard input and output.

    Args: command: what starts the agent on the device. first: bytes that are sent before anything. explain: what the
    program's end means; each transport has its own words.
    """

    def __init__(self, command: Sequence[str], first: bytes, explain: Explain) -> None:
        self._explain = explain
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close()
        # A session of its own: a Ctrl-C is for kdc, which then ends the conversation in order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            bufsize=0,
        )
        self._rest = b""
        self._greeted = self._asking = False
        self._writing = threading.Lock()
        self._closed = threading.Event()
        try:
            self._send(first)
            self.greeting = self._answer(ANSWER_SECONDS)
            self._greeted = True
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def ask(self, do: str, seconds: float = ANSWER_SECONDS, **fields: Any) -> dict[str, Any]:
        """Send a message, and give the answer to it.

        Raises: TargetError where the line is lost, or no answer comes within these seconds.
        """
        self._asking = True
        self._send(json.dumps({"do": do, **fields}).encode() + b"\n")
        answer = self._answer(seconds)
        self._asking = False
        return answer

    def put(self, path: Path, name: str) -> None:
        """Copy a file into the agent's folder, under this name.

        Raises: TargetError where it cannot be read here, cannot be written there, or the line is lost.
        """
        try:
            size, sha = path.stat().st_size, _sha256(path)
            self._asking = True
            with path.open("rb") as file, self._writing:
                header = {"do": "put", "name": name, "bytes": size, "sha256": sha}
                self._write(json.dumps(header).encode() + b"\n")
                while size > 0 and (data := file.read(min(CHUNK, size))):
                    self._write(data)
                    size -= len(data)
        except OSError as error:
            raise TargetError(f"{path}: cannot be read: {error.strerror}", do="check the path") from error
        failed = self._answer(ANSWER_SECONDS)["ok"]
        self._asking = False
        if failed is not None:
            raise TargetError(
                f"{path}: copied to the device, it {failed}", do="see whether the device's disk is full, and try again"
            )

    def close(self) -> None:
        """End the conversation: the agent removes all that is its own, then the program ends, or is ended."""
        self._closed.set()
        if self._greeted and not self._asking and self._process.poll() is None:
            with contextlib.suppress(TargetError):
                self.ask("bye", CLOSE_SECONDS)
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()  # the agent ends at the end of its input, even in the middle of a job
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(TargetError):  # who waits for an answer will see it
                self._send(b'{"do": "beat"}\n')

    def _send(self, data: bytes) -> None:
        with self._writing:
            self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except (BrokenPipeError, ValueError):
            raise self._lost() from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line that the agent has marked as its own; others are a login's greetings."""
        end = time.monotonic() + seconds
        while True:
            line = self._line(end)
            if line is None:
                raise self._late(seconds)
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line[len(MARK) :])
                if "error" in answer:
                    self._asking = False
                    raise TargetError(answer["error"])
                return answer

    def _line(self, end: float) -> bytes | None:
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([number], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            data = os.read(number, CHUNK)
            if not data:
                raise self._lost()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _lost(self) -> TargetError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        return self._explain(Ended(self._process.poll(), self._said(), self._greeted))

    def _late(self, seconds: float) -> TargetError:
        what = "answer" if self._greeted else "sign of the agent"
        return TargetError(
            f"no {what} from the device within {seconds:.0f} s\n{self._said()}".rstrip(),
            do="see whether the device is overloaded, and try again",
        )

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-SHOWN_LINES:])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
