"""How long a run has taken over all the commands that worked on it, and when its time is up."""

from __future__ import annotations

import json
import time
from pathlib import Path

from kdc.core.errors import BudgetError
from kdc.core.observe import Emit, Event
from kdc.core.writing import discard, is_plain_file, write_text

WRITE_SECONDS = 5.0


class TimeUpError(BudgetError):
    """`compile_minutes` are over."""


def _seconds(value: float) -> float:
    """Raises: ValueError where it is no count of seconds."""
    if not 0 <= float(value) < float("inf"):
        raise ValueError(value)
    return float(value)


class Clock:
    """Counts a run's seconds; what is written survives a kill. Another recipe starts from zero."""

    def __init__(self, path: Path, recipe_sha256: str, limit_minutes: float | None) -> None:
        self._path, self._recipe, self._limit = path, recipe_sha256, limit_minutes
        self._before = 0.0
        try:
            content = json.loads(path.read_bytes()) if is_plain_file(path) else {}
            if content["recipe"] == recipe_sha256:
                self._before = _seconds(content["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            discard(path)  # the first command of this recipe, or a count that was damaged
        self._began = self._written = time.monotonic()
        self.stopped = False

    @property
    def seconds(self) -> float:
        """Of all commands so far, this one included."""
        return self._before + time.monotonic() - self._began

    def write(self) -> None:
        """Keep the count."""
        self._written = time.monotonic()
        write_text(self._path, json.dumps({"recipe": self._recipe, "seconds": round(self.seconds, 1)}))

    def watching(self, emit: Emit) -> Emit:
        """An observer that passes events on, and raises TimeUpError once the limit is passed, until `stopped` is set."""

        def watch(event: Event) -> None:
            emit(event)
            if time.monotonic() - self._written > WRITE_SECONDS:
                self.write()
            if self._limit is not None and not self.stopped and self.seconds > 60 * self._limit:
                raise TimeUpError(
                    f"compile_minutes is {self._limit:g}, and they are over",
                    do="raise budget.compile_minutes and run the same command again: it goes on from here",
                )

        return watch
