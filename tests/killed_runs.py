"""Runs of `kdc compress` that are stopped by a signal at a random moment of a phase, and what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sockets import descendants

PHASES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "load": lambda event: True,
    "teacher": lambda event: event.get("step") == "teacher+export",
    "prune": lambda event: event.get("step") == "prune",
    "training": lambda event: event["event"] == "Epoch",
    "export": lambda event: event.get("step") == "prune+export",
    "measuring": lambda event: str(event.get("text")).startswith("timing"),
}
"""By the first event of each in the log; loading begins with the process."""
FILES = ("student.onnx", "weights.safetensors", "structure.json")
CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
WAIT_SECONDS = 600


@dataclass
class Stopped:
    """A run that was sent a signal, and what was there afterwards."""

    phase: str
    signal: str
    after_seconds: float
    exit_code: int
    alive: int
    left: list[str] = field(default_factory=list)


class Runs:
    """Runs of one recipe in one output folder.

    Args: recipe: of the project. out: the output folder. folder: gets the logs and the temporary folder of all runs.
    """

    def __init__(self, recipe: Path, out: Path, folder: Path) -> None:
        self.recipe, self.out, self.folder = recipe, out, folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._count = 0

    def start(self) -> tuple[subprocess.Popen[bytes], Path]:
        """The process and its log. What it says goes into a file beside that."""
        self._count += 1
        log = self.folder / f"{self.out.name}-{self._count}.jsonl"
        command = [sys.executable, "-m", "kdc.cli.main", "compress", self.recipe, "--out", self.out, "--log", log]
        with log.with_suffix(".txt").open("wb") as said:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=self.recipe.parent,
                stdout=said,
                stderr=said,
                # One thread: several on a busy machine wait for one another.
                env={**os.environ, "TMPDIR": str(self.temporary), "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
                # Under nohup a process ignores SIGHUP, and so would this one.
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - nothing forks beside it
            )
        return process, log

    def whole(self) -> tuple[int, dict[str, float]]:
        """Run to the end: the exit code, and when each phase began, in seconds from the start; "end" too."""
        began, (process, log) = time.time(), self.start()
        code = process.wait(WAIT_SECONDS)
        at = {"load": 0.0, "end": time.time() - began}
        for event in events(log):
            for phase, begins in PHASES.items():
                if phase not in at and begins(event):
                    at[phase] = event["at"] - began
        return code, at

    def stopped(self, phase: str, number: signal.Signals, after_seconds: float) -> Stopped:
        """Run, and send the signal so many seconds after the phase has begun; wait for the end."""
        process, log = self.start()
        self._wait(process, lambda: phase == "load" or any(map(PHASES[phase], events(log))))
        with suppress(subprocess.TimeoutExpired):
            process.wait(after_seconds)
        own = descendants(process.pid)[1:] if process.poll() is None else []
        process.send_signal(number)
        code = process.wait(WAIT_SECONDS)
        alive = own
        end = time.monotonic() + 20
        while alive and time.monotonic() < end:
            alive = [pid for pid in own if runs(pid)]
            time.sleep(0.05)
        return Stopped(phase, number.name, round(after_seconds, 2), code, len(alive), self.left())

    def stopped_when_decided(self, field_name: str, number: signal.Signals) -> Stopped:
        """Run, and send the signal once a step under way has stored a decision with this field."""
        process, _ = self.start()
        self._wait(process, lambda: self.decision(field_name) is not None)
        process.send_signal(number)
        return Stopped("decision", number.name, 0.0, process.wait(WAIT_SECONDS), 0, self.left())

    def decision(self, field_name: str) -> str | None:
        """The decision with this field of a step that is under way. Lowering has decisions of its own."""
        found = (path.read_text() for path in (self.out / ".kdc").glob("store/work/*/decision.json"))
        return next((text for text in found if f'"{field_name}"' in text), None)

    def left(self) -> list[str]:
        """What lies in the temporary folder."""
        return sorted(path.name for path in self.temporary.iterdir())

    def partial(self) -> list[str]:
        """What lies half-written in the output folder, and work that is not needed any more."""
        found = [*self.out.rglob("*.part"), *(self.out / ".kdc").rglob("work/*")]
        return sorted(str(path.relative_to(self.out)) for path in found)

    def bytes_of(self) -> dict[str, str]:
        """SHA-256 of the student's files, and of what the store keeps of each step."""
        stored = sorted(
            path
            for path in (self.out / ".kdc").rglob("*")
            if path.suffix in (".safetensors", ".onnx") and "cache" not in path.parts
        )
        return {
            str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in [*(self.out / name for name in FILES), *stored]
        }

    def _wait(self, process: subprocess.Popen[bytes], what: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while process.poll() is None and not what():
            if time.monotonic() > end:
                process.kill()
                raise TimeoutError
            time.sleep(0.02)


def moments(
    at: dict[str, float], phases: Sequence[str], signals: Sequence[signal.Signals], seed: int
) -> list[tuple[str, signal.Signals, float]]:
    """A random moment in each of these phases, of an undisturbed run's length, with a signal in turn."""
    draw = random.Random(seed)
    begins = sorted(at.values())
    ends = {phase: begins[begins.index(at[phase]) + 1] for phase in phases}
    return [
        (phase, signals[i % len(signals)], draw.uniform(0, 0.8) * (ends[phase] - at[phase]))
        for i, phase in enumerate(phases)
    ]


def events(log: Path) -> list[dict[str, Any]]:
    """Of a log whose last line may be half-written."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def runs(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
