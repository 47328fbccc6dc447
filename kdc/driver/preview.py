"""What `kdc plan` finds out without training: the teacher's size, and whether the target can run its graph."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from kdc.core.device import Device
from kdc.core.observe import silent
from kdc.core.store import Store
from kdc.driver.inputs import read
from kdc.driver.limits import check_showable
from kdc.driver.lint import lint, operators
from kdc.driver.lowering import Lowering
from kdc.driver.plan import Plan
from kdc.driver.recipe import Recipe
from kdc.driver.steps import Steps
from kdc.numerics.cost import count
from targets.parts import remove


@dataclass(frozen=True)
class Preview:
    """The teacher as the target sees it."""

    parameters: int
    macs: int
    operators: dict[str, int]
    notes: tuple[str, ...]


def preview(recipe: Recipe, plan: Plan, device: Device) -> Preview:
    """Export the teacher, compare its operators with the target's, and load it in the target's runtime.

    Raises: DataError, ModelError, TargetError: what `kdc compress` would meet at its start.
    """
    named = read(_hasty(recipe))
    inputs = named.inputs()
    check_showable(recipe.budget, len(inputs.data.validation))
    with tempfile.TemporaryDirectory() as scratch:
        lowering = Lowering(Steps(inputs, Store(Path(scratch)), silent), plan)
        seen: list[onnx_ir.Model] = []
        file = lowering.lowered(inputs.teacher, seen.append)
        lint(seen[-1], device)
        lowering.runtime.load(file, device)
        remove(file, lowering.runtime)
    parameters, macs = count(seen[-1])
    notes = named.data.notes
    if recipe.data.synthesise is not None:
        notes += (f"`kdc compress` synthesises {recipe.data.synthesise.samples} training samples from the teacher",)
    return Preview(parameters, macs, operators(seen[-1]), notes)


def _hasty(recipe: Recipe) -> Recipe:
    """The recipe with a synthesis of one step: nothing is trained on these samples, and good ones take minutes."""
    if recipe.data.synthesise is None:
        return recipe
    settings = recipe.data.synthesise.model_copy(update={"steps": 1})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"synthesise": settings})})
