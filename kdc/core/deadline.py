"""When a piece of work must have ended, and the record of what was given up for it.

Whoever can do with less asks for the time that is left, and decides before it begins. What is decided by the clock would
not come out the same twice: it is written down in the step's work folder first, so that a run that goes on after a kill,
and another process of the same training, decide alike.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kdc.core.writing import discard, make_folder, read_checked, write_checked

GIVEN_UP = "given_up.json"  # in a step's work folder


@dataclass(frozen=True)
class Deadline:
    """The time that a step of a run with `compile_minutes` has, or a part of it.

    Args: now: seconds by the run's clock. at: when the work must have ended, by the same clock; infinite in a process that
        only follows what another one decided. minutes: the run's limit. folder: the step's work folder. model_seconds: what
        it takes to export one model and to time it.
    """

    now: Callable[[], float]
    at: float
    minutes: float
    folder: Path
    model_seconds: float = 0.0

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self.at - self.now())

    def part(self, own: float, rest: float) -> Deadline:
        """The share of the time left that work of this size has, where work of size `rest` follows."""
        if math.isinf(self.at) or own + rest <= 0:
            return self
        return replace(self, at=self.now() + self.left() * own / (own + rest))

    def before(self, seconds: float) -> Deadline:
        """The same, but for so many seconds that are set aside; at least half of the time left stays."""
        if math.isinf(self.at):
            return self
        return replace(self, at=max(self.at - seconds, self.now() + self.left() / 2))

    def give_up(self, name: str, text: str) -> None:
        """Write down what is given up, by a name of its own in this step."""
        make_folder(self.folder)
        what = {**self.given_up(), name: text}
        write_checked(self.folder / GIVEN_UP, {"compile_minutes": self.minutes, "what": what})

    def given_up(self) -> dict[str, str]:
        """What was given up in this step so far, by name."""
        return given_up_in(self.folder)[1]


def given_up_in(work: Path) -> tuple[float | None, dict[str, str]]:
    """Under which limit, in minutes, the step of this work folder gave up what; None and nothing where it did not.

    Raises: DamagedError where the record is not what was written.
    """
    path = work / GIVEN_UP
    if not os.path.lexists(path):
        return None, {}
    content = read_checked(path)
    return content["compile_minutes"], content["what"]


def without_other_limits(work: Path, minutes: float | None) -> None:
    """Remove a work folder in which something was given up under another limit than today's: it would not be given up."""
    found, _ = given_up_in(work)
    if found is not None and found != minutes:
        discard(work)
