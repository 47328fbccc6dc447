"""The observers of a run: a live view on a terminal, plain lines elsewhere, JSON lines in a log. All on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdc.cli import stopping
from kdc.core import observe
from kdc.core.errors import FolderError
from kdc.core.observe import Emit, Event
from kdc.core.placing import check_place

PLAIN_SECONDS = 15.0  # between two progress lines where the view is not live


@contextmanager
def observer(*, quiet: bool, log: Path | None, force: bool = False) -> Iterator[Emit]:
    """What is called with each event while the block runs.

    Args: log: a file that events are added to. force: add them to a file that is no log, too.
    Raises: FolderError where the log cannot be written, or kdc did not write it.
    """
    with ExitStack() as stack:
        shown: list[Emit] = []
        if log is not None:
            check_place(log, "--log", _is_log, force=force)
            try:
                file = stack.enter_context(log.open("a"))
            except OSError as error:
                raise FolderError(f"--log {log} cannot be written: {error.strerror}", do="name another file") from error
            shown.append(_JsonLines(file))
        if not quiet:
            live = sys.stderr.isatty()
            shown.append(stack.enter_context(_live()) if live else _PlainLines(sys.stderr))

        def emit(event: Event) -> None:
            if stopping.received:
                raise KeyboardInterrupt
            for show in shown:
                show(event)

        yield emit


def _is_log(path: Path) -> bool:
    """Whether a file begins with an event, as a log does."""
    with path.open("rb") as file:
        line = file.readline(10**6)
    try:
        return bool({"event", "at"} <= json.loads(line).keys())
    except (ValueError, AttributeError):
        return False


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __call__(self, event: Event) -> None:
        line = {"event": type(event).__name__, "at": round(time.time(), 3), **dataclasses.asdict(event)}
        print(json.dumps(line), file=self.file, flush=True)


class _PlainLines:
    def __init__(self, file: TextIO) -> None:
        self.file, self.last = file, time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, observe.Progress):
            now = time.monotonic()
            if now - self.last < PLAIN_SECONDS:
                return
            self.last = now
        text = _words(event)
        if text:
            print(text, file=self.file, flush=True)


@contextmanager
def _live() -> Iterator[Emit]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def emit(event: Event) -> None:
            if isinstance(event, observe.Progress):
                if event.what not in tasks:
                    for old in tasks.values():
                        progress.remove_task(old)
                    tasks.clear()
                    # Work that goes on from a checkpoint did not do its first part now: it must not count as speed.
                    tasks[event.what] = progress.add_task(event.what, total=event.total, completed=event.done)
                progress.update(tasks[event.what], completed=event.done)
                return
            text = _words(event)
            if text:
                progress.console.print(text, highlight=False, markup=False)

        yield emit


def _words(event: Event) -> str:
    match event:
        case observe.StepStarted(step, index, of, stored):
            return f"[{index}/{of}] {step}" + (": stored, not done again" if stored else "")
        case observe.StepFinished(step, seconds):
            return f"      {step}: {seconds:.1f} s"
        case observe.Epoch(epoch, of, loss, metric, seconds):
            score = "" if metric is None else f", validation {metric:.2f}"
            return f"      epoch {epoch}/{of}: loss {loss:.4f}{score}, {seconds:.1f} s"
        case observe.Kept(layer, kept, whole):
            return f"      {layer}: {kept} of {whole} channels kept"
        case observe.Progress(what, done, total, unit):
            return f"      {what}: {done} of {total} {unit}"
        case observe.Note(text):
            return f"      {text}"
    return ""
