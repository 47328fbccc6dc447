"""The compressing steps of a recipe, without lowering and measuring. Run as a script, it can be killed."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdc.core.artifact import Artifact
from kdc.core.budget import Cost
from kdc.core.errors import KdcError
from kdc.core.observe import silent
from kdc.core.store import Store
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Made, Steps
from passes import PASSES


class Target:
    """Figures that never come out the same twice, as a device's."""

    def __init__(self) -> None:
        self._noise = itertools.count()

    def forecasts(self, artifacts: Sequence[Artifact[Any]]) -> list[Cost | KdcError]:
        return [self._cost(artifact.model) for artifact in artifacts]

    def _cost(self, model: torch.nn.Module) -> Cost:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        noise = 1 + 1e-4 * next(self._noise)
        return Cost(latency_ms=parameters * 1e-4 * noise, size_mb=1e-3, macs=parameters, parameters=parameters)

    def teacher_cost(self) -> Cost:
        return Cost(latency_ms=2.0, size_mb=1.0, macs=1e6, parameters=20_000)


def run(recipe: Path, store: Path, *settings: str) -> Made:
    """The last compressing step."""
    loaded, kept, target = load_recipe(recipe, {}, settings, PASSES), Store(store), Target()
    inputs = load(loaded, kept)
    steps = Steps(inputs, kept, silent)
    made = steps.root
    plan = make(loaded.passes, inputs.device).compress
    for number, planned in enumerate(plan, start=1):
        place = number, len(plan)
        made = steps.run(planned.label, planned, made, place, target.forecasts, target.teacher_cost)
    return made


if __name__ == "__main__":
    torch.set_num_threads(2)
    run(Path(sys.argv[1]), Path(sys.argv[2]))
