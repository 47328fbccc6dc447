"""How long a run has taken over all the commands that worked on it, and how much of its limit is left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from kdc.core.errors import BudgetError
from kdc.core.observe import Emit, Event
from kdc.core.writing import discard, is_plain_file, write_text

WRITE_SECONDS = 5.0
LOWER, EVALUATE, RUN, TIME = "lower", "evaluate", "run", "time"
"""What is timed: a model's files made, its validation split in the runtime and in torch, the first of these alone, and a
short look at its latency."""
Timed = Callable[[str], AbstractContextManager[None]]


class TimeUpError(BudgetError):
    """`compile_minutes` are over, or too few for any student."""


def _seconds(value: float) -> float:
    """Raises: ValueError where it is no count of seconds."""
    if not 0 <= float(value) < float("inf"):
        raise ValueError(value)
    return float(value)


class Clock:
    """Counts a run's seconds; what is written survives a kill. Another recipe starts from zero.

    Beside the count stand what parts of the work took (`timed`), which a run that goes on no longer does, and what was
    decided by the clock (`decided`).

    Args: began: when this command began, by `now`; None: now. now: seconds by a clock that never goes back.
    """

    def __init__(
        self,
        path: Path,
        recipe_sha256: str,
        limit_minutes: float | None,
        began: float | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._recipe, self.limit_minutes, self._now = path, recipe_sha256, limit_minutes, now
        self._before = 0.0
        self._took: dict[str, float] = {}
        self._expected: dict[str, float] = {}
        self._decided: dict[str, Any] = {}
        try:
            content = json.loads(path.read_bytes()) if is_plain_file(path) else {}
            if content["recipe"] == recipe_sha256:
                self._before = _seconds(content["seconds"])
                self._took = {name: _seconds(seconds) for name, seconds in content.get("took", {}).items()}
                self._decided = dict(content.get("decided", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            discard(path)  # the first command of this recipe, or a count that was damaged
        self._began = now() if began is None else began
        self._written = now()
        self.ends = True
        """Whether work ends where the limit is passed: until there is something that could be finished."""

    @property
    def seconds(self) -> float:
        """Of all commands so far, this one included."""
        return self._before + self._now() - self._began

    @property
    def left(self) -> float:
        """Seconds until the limit, below 0 behind it; infinite without one."""
        return math.inf if self.limit_minutes is None else 60 * self.limit_minutes - self.seconds

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Remember how long the block takes; of several blocks of one name, the longest."""
        began = self._now()
        yield
        self._took[what] = max(self._took.get(what, 0.0), self._now() - began)

    def took(self, what: str) -> float:
        """Seconds that this took, or is expected to take; 0 where neither is known."""
        return self._took.get(what, self._expected.get(what, 0.0))

    def expect(self, what: str, seconds: float) -> None:
        """Say how long this will probably take: until it was timed."""
        self._expected[what] = seconds

    def decided(self, what: str, decide: Callable[[], Any]) -> Any:
        """A plain JSON value that is decided once: a run that goes on, or is run again, has the same."""
        if what not in self._decided:
            self._decided[what] = decide()
            self.write()
        return self._decided[what]

    def write(self) -> None:
        """Keep the count."""
        self._written = self._now()
        content = {
            "recipe": self._recipe,
            "seconds": round(self.seconds, 1),
            "took": {name: round(seconds, 3) for name, seconds in self._took.items()},
            "decided": self._decided,
        }
        write_text(self._path, json.dumps(content))

    def watching(self, emit: Emit) -> Emit:
        """An observer that passes events on, and keeps the count from time to time.

        Raises: TimeUpError by the observer, where the limit is passed while `ends` is set.
        """

        def watch(event: Event) -> None:
            emit(event)
            if self._now() - self._written > WRITE_SECONDS:
                self.write()
            if self.ends and self.left < 0:
                raise TimeUpError(
                    f"compile_minutes is {self.limit_minutes:g}, and they are over before anything could be trained: "
                    "loading, making samples, and lowering and judging the teacher took them",
                    do="raise budget.compile_minutes and run the same command again: it goes on from here",
                )

        return watch
