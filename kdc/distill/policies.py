"""The recipe's objectives and strategies as the policies that compose in the training loop."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kdc.core.contract import Context, Task
from kdc.distill.logit_settings import MovingTarget, OnOutputs, SoftTargets
from kdc.distill.objectives.moving import Interpolation, taid
from kdc.distill.policy import Batch, Policy
from kdc.distill.settings import AnyStrategy, HardLabels, Objective
from kdc.distill.strategy_settings.base import Strategy

LAST = Strategy.stage


class _Labels(Policy):
    reads_teacher = False
    of_labels = True

    def __init__(self, settings: HardLabels, task: Task) -> None:
        self.settings, self.task, self.kind = settings, task, settings.kind

    def loss(self, batch: Batch) -> torch.Tensor:
        values = self._of(batch, batch.labels)
        if batch.others is not None and batch.share is not None:
            values = batch.share * values + (1 - batch.share) * self._of(batch, batch.others)
        return self.settings.weight * values

    def _of(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        known = labels >= 0
        known = known if known.dim() == 1 else known.flatten(1).all(1)
        return known * self.task.loss(batch.student, labels.clamp_min(0))


class _Outputs(Policy):
    """Any objective on outputs: its settings name the function and hold its arguments."""

    def __init__(self, settings: OnOutputs) -> None:
        self.settings, self.arguments = settings, settings.arguments()
        self.function = function_of(settings)
        self.linear_at = settings.temperature if isinstance(settings, SoftTargets) else None
        self.kind: str = settings.kind  # type: ignore[attr-defined]  # every objective of the union has one

    def loss(self, batch: Batch) -> torch.Tensor:
        if not self.settings.labels:
            return self.settings.weight * self.function(batch.student, batch.teacher, **self.arguments)
        # Of a mixed sample, its larger part's label stands for it; an unlabelled one has the teacher's class.
        labels = batch.labels
        if batch.others is not None and batch.share is not None:
            labels = torch.where(batch.share >= 0.5, labels, batch.others)
        if labels.dim() == 1:  # of tokens, one below 0 is padding
            labels = torch.where(labels < 0, batch.teacher.argmax(1), labels)
        return self.settings.weight * self.function(batch.student, batch.teacher, labels, **self.arguments)


class _MovingTarget(Policy):
    """TAID. What it remembers from step to step is a buffer in `trained`, so that it is in the loop's checkpoints."""

    def __init__(self, settings: MovingTarget) -> None:
        self.settings, self.kind = settings, settings.kind
        memory = nn.Module()
        begun = Interpolation(settings.start)
        memory.register_buffer(
            "state", torch.tensor([begun.share, begun.momentum, begun.previous], dtype=torch.float64)
        )
        self.trained: nn.Module | None = memory
        self._memory = memory

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.settings.weight * self._values(batch)

    @torch.no_grad()
    def after(self, batch: Batch) -> None:
        """The target moves once a step, by the loss of the whole batch, in however many parts it was seen."""
        settings, state = self.settings, self._memory.get_buffer("state")
        mean = float(self._values(batch).mean())
        after = Interpolation(*state.tolist()).advanced(
            mean, batch.progress, settings.start, settings.end, settings.rate, settings.decay
        )
        state.copy_(torch.tensor([after.share, after.momentum, after.previous], dtype=torch.float64))

    def _values(self, batch: Batch) -> torch.Tensor:
        return taid(batch.student, batch.teacher, float(self._memory.get_buffer("state")[0]))


def function_of(settings: OnOutputs) -> Callable[..., torch.Tensor]:
    """The function that the settings name, imported now."""
    found: Callable[..., torch.Tensor] = _named(settings.function)
    return found


def policies(parts: Sequence[Objective | AnyStrategy], student: nn.Module, context: Context) -> list[Policy]:
    """Strategies and objectives of a recipe as policies over these two models, in their order.

    Strategies that change the batch stand first, by their stage: see `Strategy.stage`.
    """
    made: list[Policy] = []
    try:
        for settings in sorted(parts, key=lambda part: part.stage if isinstance(part, Strategy) else LAST):
            made.append(_policy(settings, student, context))
    except BaseException:  # one that cannot be made must not leave the others' hooks on the models
        for policy in made:
            policy.close()
        raise
    return made


def _policy(settings: Objective | AnyStrategy, student: nn.Module, context: Context) -> Policy:
    named: str | None = getattr(settings, "policy", None)
    if named is not None:
        made: Policy = _named(named)(settings, student, context)
        return made
    match settings:
        case HardLabels():
            return _Labels(settings, context.task)
        case MovingTarget():
            return _MovingTarget(settings)
        case OnOutputs():
            return _Outputs(settings)
        case _:
            raise AssertionError(f"{type(settings).__name__} names no policy")


def _named(name: str) -> Any:
    """What "module:name" names, imported now: a recipe is read without torch."""
    module, found = name.split(":")
    return getattr(importlib.import_module(module), found)
