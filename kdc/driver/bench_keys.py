"""Which sources a trial of the leaderboard depends on: those that run in it, so that a new objective redoes no other's."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import BaseModel

from kdc.core.contract import Task
from kdc.driver.sources import digests, versions
from kdc.driver.trial import Trial

# Settings are read by value, and by the source of the classes that are used: their files name every objective.
SETTINGS = ("kdc.distill.settings", "kdc.distill.logit_settings", "kdc.distill.feature_settings")
NAMES = ("function", "policy", "transform")  # by which settings name what runs, as "module:name"
LIBRARIES = ("torch", "numpy")


def sources(trial: Trial, task: Task) -> dict[str, str]:
    """{file or class: SHA-256} of all of kdc's that could change the trial's result."""
    found = dict(_shared(type(task).__module__))
    training = trial.training
    for one in _models((training.objectives, training.strategies, training.transforms)):
        for kind in type(one).__mro__:
            if issubclass(kind, BaseModel) and kind is not BaseModel:
                found[f"{kind.__module__}.{kind.__name__}"] = _text(kind)
        for name in NAMES:
            runs = getattr(one, name, None)
            if isinstance(runs, str):
                found |= digests(runs.partition(":")[0], SETTINGS)
    return dict(sorted(found.items()))


def libraries() -> dict[str, str]:
    """Versions of what computes."""
    return versions(LIBRARIES)


def _models(value: Any) -> Iterator[BaseModel]:
    """The settings in a value, and those in them."""
    if isinstance(value, BaseModel):
        yield value
        value = tuple(member for _, member in value)
    if isinstance(value, tuple):
        for member in value:
            yield from _models(member)


@cache
def _shared(task: str) -> dict[str, str]:
    return {**digests("kdc.driver.trial", SETTINGS), **digests(task, SETTINGS)}


@cache
def _text(kind: type) -> str:
    return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:16]
