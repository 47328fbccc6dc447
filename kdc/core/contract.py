"""The contract of a pass: facts it needs, gives and takes away; a decision; three verbs.

Settings are read without torch, so that a broken recipe is answered at once: a pass's class stands in a file that
imports no torch, and its verbs import the machinery they call.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel

from kdc.core.budget import Budget, Cost
from kdc.core.deadline import Deadline
from kdc.core.device import Device
from kdc.core.errors import KdcError
from kdc.core.observe import Emit, Note
from kdc.core.writing import read_checked, write_checked

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from kdc.core.artifact import Artifact
    from kdc.core.data import Split, Splits


class Fact(StrEnum):
    """What can be true of an artifact."""

    TORCH = "torch"  # an nn.Module
    ONNX = "onnx"  # an onnx_ir.Model
    DEVICE = "device"  # the file that the target's runtime loads
    FITTED = "fitted"  # trained: its outputs mean something
    FLOAT = "float"  # weights and activations are floating point
    STATIC = "static"  # no data-dependent control flow


@dataclass(frozen=True)
class Contract:
    """Facts that must hold before a pass, and how it changes them."""

    requires: frozenset[Fact]
    provides: frozenset[Fact] = frozenset()
    destroys: frozenset[Fact] = frozenset()


class Decision(BaseModel, frozen=True, extra="forbid"):
    """What a pass chose: small, stored as JSON, printed, diffed, edited by hand."""


class Task(Protocol):
    """What the model is for: its loss, its metrics, and a score for each sample so that two models can be paired."""

    name: str
    metric: str  # the headline metric's name; it is given in points, 0 to 100, higher is better

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Outputs [batch, ...], labels [batch, ...] -> [batch]."""

    def scores(self, outputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[n] in 0..1; 100 times their mean is the headline metric."""

    def metrics(
        self,
        outputs: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        teacher: np.ndarray[Any, Any] | None,
        previous: np.ndarray[Any, Any] | None = None,
    ) -> dict[str, float]:
        """Every metric of the task by name; `teacher` is the teacher's outputs on the same samples, `previous` those of
        the release that the student replaces. `churn`, in points, is how often a user would see another answer than of
        the previous release, without one than of the teacher.
        """

    def temperature(self, outputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        """What the outputs are to be divided by so that the model is as sure as it is right, on samples it has not seen."""

    def chance(self, data: Splits) -> float:
        """Points that a constant guess reaches on the validation split."""

    def check(self, split: Split, name: str, outputs: tuple[int, ...]) -> None:
        """Raises DataError where the labels of a split do not fit a model whose outputs have this shape [batch, ...]."""


FINDINGS = "findings.json"  # in a step's work folder


def named_seed(*names: object) -> int:
    """A seed of 56 bits that belongs to these names alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:7], "big")


class Again(Protocol):
    """What it takes to go on with a step in another process, as after a kill, until one of its trainings."""

    def __call__(self, training: str, folder: Path) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command, and its environment, of a process that joins the training of this name.

        What it reads is written into the folder, and it writes nowhere else but into the teacher's answers' cache.
        """


@dataclass(frozen=True)
class Context:
    """What a pass may use. A new field belongs to one of the three kinds of `kdc.core.reads`.

    `work` is a folder of the step's own for checkpoints, kept until the step is stored; `cache` is a folder for what
    depends on the teacher, the data and the seed alone.
    """

    step: str
    device: Device
    task: Task
    data: Splits
    teacher: nn.Module
    budget: Budget
    seed: int
    work: Path
    cache: Path
    emit: Emit
    teacher_cost: Callable[[], Cost]
    """What the teacher's own exported file costs on the target."""
    forecasts: Callable[[Sequence[Artifact[Any]]], list[Cost | KdcError]]
    """What each artifact would cost on the target once the rest of the plan's structure is applied; weights do not matter.

    One that cannot be lowered has the error in its place. Artifacts asked for together are timed in one process.
    """
    cache_root: Path | None = None
    """The folder that `cache` lies in, with those of other seeds and teachers; None: `cache` itself."""
    cache_bytes: int | None = None
    """How much the teacher's answers in `cache_root` may take; 0: none are kept; None: a share of the disk."""

    allow_torchscript: bool = False
    """Whether TorchScript files may be called as teachers: `kdc compress --allow-torchscript`."""
    again: Again | None = None
    """How another process goes on with this step, to share one of its trainings; None: it cannot be run again."""
    joins: str | None = None
    """In such a process: the `step` of the training that it joins; it ends behind that one."""
    deadline: Deadline | None = None
    """When this step must have ended; None: it may take as long as it takes."""

    def forecast(self, artifact: Artifact[Any]) -> Cost:
        """`forecasts` of one. Raises: what kept it from being lowered."""
        (cost,) = self.forecasts([artifact])
        if isinstance(cost, KdcError):
            raise cost
        return cost

    def find(self, name: str, value: Any) -> None:
        """Record something that was learned on the way (plain JSON values): the report shows it with the step."""
        path = self.work / FINDINGS
        found = read_checked(path) if os.path.lexists(path) else {}
        write_checked(path, {**found, name: value})

    def generator(self, name: str) -> torch.Generator:
        """A generator of random numbers of this name's own: the same for the same seed, step and name."""
        import torch

        return torch.Generator().manual_seed(named_seed(self.seed, self.step, name))

    def named(self, part: str) -> Context:
        """The same context for a part of the step that keeps its own checkpoints and draws."""
        return replace(self, step=f"{self.step}.{part}", work=self.work / part)

    def portion(self, own: float, rest: float) -> Context:
        """The same context for work of this size, where work of size `rest` follows: it has that share of the time left."""
        return self if self.deadline is None else replace(self, deadline=self.deadline.part(own, rest))

    def sets_aside(self, models: int) -> Context:
        """The same context with less time: what it takes to export and time so many models is set aside."""
        deadline = self.deadline
        return self if deadline is None else replace(self, deadline=deadline.before(models * deadline.model_seconds))

    def out_of_time(self, name: str, text: str, needs: float = 0.0) -> bool:
        """Whether something is given up because less than `needs` seconds are left; what was given up once stays so.

        Args: name: of what is given up, its own in this context. text: what is given up, in words, for the report.
        """
        if self.deadline is None:
            return False
        if self.gave_up(name):
            return True
        if self.deadline.left() > needs:
            return False
        self.give_up(name, text)
        return True

    def gave_up(self, name: str) -> bool:
        """Whether this was given up, in this context."""
        return self.deadline is not None and f"{self.step}: {name}" in self.deadline.given_up()

    def give_up(self, name: str, text: str, *, quietly: bool = False) -> None:
        """Write down what is given up for the limit on the run's time, and tell it unless the user has heard as much."""
        if self.deadline is not None:
            told = f"{self.step}: {text}, by compile_minutes {self.deadline.minutes:g}"
            self.deadline.give_up(f"{self.step}: {name}", told)
            if not quietly:
                self.emit(Note(told))


D = TypeVar("D", bound=Decision)


class Pass(BaseModel, Generic[D], frozen=True, extra="forbid"):
    """A pass is its settings (the fields) and three verbs. Its docstring's first line is what `kdc passes` prints."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch",)
    """Distributions whose version can change this pass's result; part of the store's key."""
    decision_type: ClassVar[type[Decision]]

    @abstractmethod
    def contract(self, device: Device) -> Contract:
        """Facts it requires, provides and destroys on this device."""

    def refused(self, device: Device) -> str | None:
        """Why this pass can never work for this device; None where it can. Asked before anything is computed."""
        return None

    def measures(self, budget: Budget) -> bool:
        """Whether `decide` times candidates on the target, so that its result depends on the machine.

        A pass that asks for `Context.forecasts` or `Context.teacher_cost` and does not say so fails the step.
        """
        return False

    def reads(self, budget: Budget) -> tuple[str, ...]:
        """Names of the budget's fields that `decide` and `tune` read; part of the store's key.

        A field that is read and not named fails the step (`kdc.core.reads`).
        """
        return ()

    def training_epochs(self) -> float:
        """About how many epochs of training it may take: by it a limit on the run's time is divided among the passes."""
        return 0.0

    def structural(self) -> Self:
        """These settings without what `tune` alone reads, which then has its default.

        A pass before this one forecasts what a student costs with this one's structure. The forecast is made with these
        settings, and they are part of that pass's key: so a longer training here does not redo the pass before.
        """
        return self

    def code(self) -> tuple[str, ...]:
        """The user's own callables that this pass runs ("path.py:name"): their source is part of the store's key."""
        return ()

    @abstractmethod
    def decide(self, artifact: Artifact[Any], context: Context) -> D:
        """Look, measure, learn if it must; change nothing."""

    @abstractmethod
    def apply(self, artifact: Artifact[Any], decision: D) -> Artifact[Any]:
        """Structure only: no data, deterministic, replayable. Leaves the artifact it was given as it was."""

    def tune(self, artifact: Artifact[Any], context: Context) -> Artifact[Any]:
        """Recover accuracy by distillation. May change the artifact's model in place; gives the artifact to go on with."""
        return artifact
