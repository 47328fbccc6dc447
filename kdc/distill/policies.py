"""What composes in the training loop: each policy adds its part of the loss, and may watch both models while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from kdc.core.contract import Context, Task
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.distill.objectives.features import hint
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.pairing import Projector, Tap, pair, shapes
from kdc.distill.settings import HardLabels, Hints, Objective, SoftTargets


@dataclass(frozen=True)
class Batch:
    """One step's labels and outputs."""

    labels: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor


class Policy(Protocol):
    """One part of the loss. `runs_teacher`: it needs the teacher's own forward, not only its stored outputs."""

    runs_teacher: bool
    trained: nn.Module | None  # what is trained beside the student and thrown away after

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""

    def close(self) -> None:
        """Leave both models as they were found."""


class _Labels:
    runs_teacher = False
    trained: nn.Module | None = None

    def __init__(self, settings: HardLabels, task: Task) -> None:
        self.settings, self.task = settings, task

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.settings.weight * self.task.loss(batch.student, batch.labels)

    def close(self) -> None:
        """Nothing was attached."""


class _SoftTargets:
    runs_teacher = False
    trained: nn.Module | None = None

    def __init__(self, settings: SoftTargets) -> None:
        self.settings = settings

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.settings.weight * soft_targets(batch.student, batch.teacher, self.settings.temperature)

    def close(self) -> None:
        """Nothing was attached."""


class _Hints:
    runs_teacher = True

    def __init__(self, settings: Hints, student: nn.Module, context: Context) -> None:
        self.settings = settings
        example = tuple(tensor[:2] for tensor in context.data.calibration.inputs)
        of_student, of_teacher = shapes(student, example), shapes(context.teacher, example)
        self.pairs = settings.layers or pair(of_student, of_teacher, settings.pairs)
        if not self.pairs:
            raise ModelError(
                "hints found no layers of student and teacher to pair",
                do="name them in the recipe: objectives: [{kind: hints, layers: {student.path: teacher.path}}]",
            )
        self._student, self._teacher = Tap(student, list(self.pairs)), Tap(context.teacher, list(self.pairs.values()))
        generator = context.generator("projectors")
        self._projectors = [Projector(of_student[s], of_teacher[t], generator) for s, t in self.pairs.items()]
        self.trained: nn.Module | None = nn.ModuleList(self._projectors)
        context.emit(Note("hints pair " + ", ".join(f"{s} with {t}" for s, t in self.pairs.items())))

    def loss(self, batch: Batch) -> torch.Tensor:
        parts = [
            hint(projector(self._student.features[s]), self._teacher.features[t])
            for projector, (s, t) in zip(self._projectors, self.pairs.items(), strict=True)
        ]
        return self.settings.weight * torch.stack(parts).mean(0)

    def close(self) -> None:
        self._student.close()
        self._teacher.close()


def policies(objectives: Sequence[Objective], student: nn.Module, context: Context) -> list[Policy]:
    """The objectives of a recipe as policies over these two models."""
    made: list[Policy] = []
    for settings in objectives:
        match settings:
            case HardLabels():
                made.append(_Labels(settings, context.task))
            case SoftTargets():
                made.append(_SoftTargets(settings))
            case Hints():
                made.append(_Hints(settings, student, context))
    return made
