"""One training of the leaderboard: a method, a seed, a student; its scores on the validation and the test split."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.budget import Budget
from kdc.core.contract import Context, Task
from kdc.core.data import Splits
from kdc.core.device import Device
from kdc.core.errors import DamagedError
from kdc.core.observe import Event, Note
from kdc.core.weights import load_checkpoint, save_checkpoint
from kdc.distill.loop import train
from kdc.distill.settings import Training
from kdc.distill.teacher import predict
from kdc.driver.methods import Teacher
from kdc.driver.students import Start, Structure, built, cut, fresh, random_teacher, truncated_teacher

JUDGED = ("validation", "test")
Metrics = dict[str, dict[str, float]]


class Trial(BaseModel, frozen=True, extra="forbid"):
    """What is trained. `name` is for the reader: the same training under another name is the same trial."""

    name: str
    training: Training
    teacher: Teacher = "own"
    seed: int = Field(ge=0)
    start: Start
    structure: Structure


@dataclass(frozen=True)
class Bench:
    """What all trials of a recipe share. `cache`: a folder for what depends on the teacher, the data and a seed alone."""

    teacher: Artifact[nn.Module]
    data: Splits
    task: Task
    device: Device
    cache: Path
    allow_torchscript: bool = False
    _cut: dict[Structure, nn.Module] = field(default_factory=dict)

    def student(self, structure: Structure, start: Start, seed: int) -> nn.Module:
        """A student to train. One structure is cut from the teacher once, for to follow its channels takes seconds."""
        if structure.build is not None:
            return built(structure.build, seed, self.data.calibration[:2].inputs)
        if structure not in self._cut:
            self._cut[structure] = cut(self.teacher, structure)
        made = copy.deepcopy(self._cut[structure])
        return fresh(made, seed) if start == "fresh" else made

    def context(
        self, seed: int, work: Path, cache: Path, teacher: nn.Module, notes: list[str] | None = None
    ) -> Context:
        """Draws go by the seed alone: every method of a seed sees the same views in the same order."""

        def emit(event: Event) -> None:
            if notes is not None and isinstance(event, Note):
                notes.append(event.text)

        return Context(
            step="bench", device=self.device, task=self.task, data=self.data, teacher=teacher, budget=Budget(),
            seed=seed, work=work, cache=cache, emit=emit, teacher_cost=_no_costs, forecasts=_no_costs,
            allow_torchscript=self.allow_torchscript,
        )  # fmt: skip

    def answers(self, split: str) -> np.ndarray[Any, Any]:
        """The teacher's outputs over a split, computed once."""
        path = self.cache / f"answers-{split}.safetensors"
        try:
            kept = load_checkpoint(path)
        except DamagedError:
            kept = None
        if kept is None:
            kept = {"outputs": predict(self.teacher.model, getattr(self.data, split))}, {}
            save_checkpoint(kept[0], path)
        answers: np.ndarray[Any, Any] = kept[0]["outputs"].numpy()
        return answers


@dataclass(frozen=True)
class Scored:
    """What a trial gave: each sample's score by split [n], the task's metrics by split, and what was said on the way."""

    scores: dict[str, torch.Tensor]
    metrics: Metrics
    notes: tuple[str, ...]
    seconds: float


def run(trial: Trial, bench: Bench, work: Path) -> Scored:
    """Train the student and judge it; a checkpoint in `work` is gone on from.

    Raises: ModelError where an objective does not fit the two models, or the loss is no longer finite.
    """
    began = time.monotonic()
    notes: list[str] = []
    cache = bench.cache / f"seed-{trial.seed}-{trial.teacher}"
    context = bench.context(trial.seed, work, cache, teacher_of(trial, bench), notes)
    model = train(bench.student(trial.structure, trial.start, trial.seed), context, trial.training)
    scores: dict[str, torch.Tensor] = {}
    metrics: Metrics = {}
    for name in JUDGED:
        split = getattr(bench.data, name)
        outputs, labels = predict(model, split).numpy(), split.labels.numpy()
        scores[name] = torch.from_numpy(bench.task.scores(outputs, labels)).float()
        metrics[name] = bench.task.metrics(outputs, labels, bench.answers(name))
    return Scored(scores, metrics, tuple(notes), time.monotonic() - began)


def teacher_of(trial: Trial, bench: Bench) -> nn.Module:
    """The recipe's teacher, or a control in its place."""
    controls: dict[Teacher, Callable[[], nn.Module]] = {
        "own": lambda: bench.teacher.model,
        "random": lambda: random_teacher(bench.teacher.model, bench.data, trial.seed),
        "truncated": lambda: truncated_teacher(bench.teacher.model, bench.data, bench.task),
    }
    return controls[trial.teacher]()


def _no_costs(*_: object) -> NoReturn:
    raise AssertionError("a leaderboard measures no latency")
