"""What another process is told to go on with a step, and the figures that it cannot measure anew.

A step that measures decides by its figures, which never come out the same twice: another process that is to come to the
same training is given those that this one saw.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from kdc.core import errors
from kdc.core.artifact import Artifact
from kdc.core.budget import Cost
from kdc.core.errors import KdcError, LawError
from kdc.driver.recipe import Recipe, lock_text
from targets.fresh import own_environment

Forecasts = Callable[[Sequence[Artifact[Any]]], list[Cost | KdcError]]
MODULE = "kdc.driver.member"
RECIPE, JOB, WORK = "recipe.yaml", "job.json", "work"


class Failure(BaseModel, frozen=True, extra="forbid"):
    """Why an artifact has no cost."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: KdcError) -> Failure:
        """The failure that is read as this error again."""
        return cls(kind=type(error).__name__, message=str(error))

    def error(self) -> KdcError:
        """Of its own kind, for a pass may tell one from another."""
        kind: type[KdcError] = getattr(errors, self.kind, KdcError)
        return kind(self.message)


class Figures(BaseModel, extra="forbid"):
    """What was measured: the teacher's cost, and those forecast for each artifact, by its digest, in their order."""

    teacher: Cost | None = None
    forecast: dict[str, list[Cost | Failure]] = {}


@dataclass
class Recorded:
    """A step's two ways to ask the target, which remember what they answered."""

    ask: Forecasts
    ask_teacher: Callable[[], Cost]
    figures: Figures = field(default_factory=Figures)

    def forecasts(self, artifacts: Sequence[Artifact[Any]]) -> list[Cost | KdcError]:
        """As `Context.forecasts`."""
        found = self.ask(artifacts)
        for artifact, cost in zip(artifacts, found, strict=True):
            told = Failure.of(cost) if isinstance(cost, KdcError) else cost
            self.figures.forecast.setdefault(artifact.digest(), []).append(told)
        return found

    def teacher_cost(self) -> Cost:
        """As `Context.teacher_cost`."""
        self.figures.teacher = self.ask_teacher()
        return self.figures.teacher


class Replayed:
    """The same two ways in another process: only what was recorded is answered."""

    def __init__(self, figures: Figures) -> None:
        self._teacher = figures.teacher
        self._forecast = {digest: list(told) for digest, told in figures.forecast.items()}

    def forecasts(self, artifacts: Sequence[Artifact[Any]]) -> list[Cost | KdcError]:
        """As `Context.forecasts`. Raises: LawError for what the first process did not ask before the training."""
        return [self._of(artifact) for artifact in artifacts]

    def teacher_cost(self) -> Cost:
        """As `Context.teacher_cost`. Raises: LawError as `forecasts` does."""
        if self._teacher is None:
            raise _not_asked("what the teacher costs")
        return self._teacher

    def _of(self, artifact: Artifact[Any]) -> Cost | KdcError:
        left = self._forecast.get(artifact.digest())
        if not left:
            raise _not_asked("a forecast")
        told = left.pop(0)
        return told.error() if isinstance(told, Failure) else told


def _not_asked(what: str) -> LawError:
    return LawError(
        f"another process of a training, on its way there, asks for {what} that the first process was not told: the step "
        "does not do the same again from its work folder"
    )


class Job(BaseModel, frozen=True, extra="forbid"):
    """What another process is told; beside it lie the recipe and the work folder.

    `cache` and `gigabytes` are the run's `Kept`; `parent` is the process that it ends with; `threads` are those of the
    first process, for other numbers of them give other bytes.
    """

    step: str
    training: str
    store: Path
    cache: Path | None
    gigabytes: float | None
    threads: int
    parent: int
    figures: Figures
    allow_torchscript: bool = False


@dataclass(frozen=True)
class GoOn:
    """`Context.again` of one step."""

    recipe: Recipe
    step: str
    work: Path
    store: Path
    cache: Path | None
    gigabytes: float | None
    figures: Figures
    allow_torchscript: bool = False

    def __call__(self, training: str, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command and its environment; the work folder is copied, for two cannot write into one."""
        (folder / RECIPE).write_text(lock_text(self.recipe))
        shutil.copytree(self.work, folder / WORK)
        job = Job(
            step=self.step,
            training=training,
            store=self.store.resolve(),
            cache=self.cache,
            gigabytes=self.gigabytes,
            threads=torch.get_num_threads(),
            parent=os.getpid(),
            figures=self.figures,
            allow_torchscript=self.allow_torchscript,
        )
        (folder / JOB).write_text(job.model_dump_json())
        return [sys.executable, "-P", "-m", MODULE, str(folder)], own_environment()
