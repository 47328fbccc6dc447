"""What passes report; observers show it. Nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened in a run."""


@dataclass(frozen=True)
class StepStarted(Event):
    """A step begins; `stored` when its result was found in the store."""

    step: str
    index: int
    of: int
    stored: bool = False


@dataclass(frozen=True)
class StepFinished(Event):
    """A step ended after `seconds`."""

    step: str
    seconds: float


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` units of one piece of work; `unit` is their name in the plural ("epochs", "batches")."""

    what: str
    done: int
    total: int
    unit: str = "steps"


@dataclass(frozen=True)
class Epoch(Event):
    """One epoch of training ended. `metric` (in points) is of the validation split, None where it was not evaluated."""

    epoch: int
    of: int
    loss: float
    metric: float | None
    seconds: float


@dataclass(frozen=True)
class Kept(Event):
    """A pruned layer and how many of its channels are left."""

    layer: str
    kept: int
    of: int


@dataclass(frozen=True)
class Note(Event):
    """Something the user should know, in one sentence."""

    text: str


Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An observer that shows nothing."""
