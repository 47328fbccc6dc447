"""What a recipe names, loaded and checked: the teacher, the data, the task, the device."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.contract import Task
from kdc.core.data import Splits
from kdc.core.device import Device
from kdc.core.errors import DataError, ModelError
from kdc.core.spec import TensorSpec
from kdc.core.usercode import call, load_callable, source_fingerprint
from kdc.core.weights import load_weights
from kdc.driver.recipe import Recipe
from kdc.tasks.classification import task_of
from kdc.tasks.data import input_specs, load_splits
from targets.device import load_device


@dataclass(frozen=True)
class Inputs:
    """A recipe's inputs. `teacher_source` is the SHA-256 of the user's code that builds the teacher."""

    recipe: Recipe
    device: Device
    task: Task
    data: Splits
    teacher: Artifact[nn.Module]
    teacher_source: str


def load(recipe: Recipe) -> Inputs:
    """Load everything that the recipe names.

    Raises: TargetError, DataError, ModelError: one message each, before any time is spent.
    """
    device = load_device(recipe.target)
    task = task_of(recipe.task)
    data = load_data(recipe)
    teacher, source = load_teacher(recipe, data)
    for name in ("train", "calibration", "validation", "test"):
        task.check(getattr(data, name), name, tuple(example(teacher.outputs[0]).shape))
    return Inputs(recipe, device, task, data, teacher, source)


def load_data(recipe: Recipe) -> Splits:
    """The splits that the user's callable gives."""
    loader = load_callable(recipe.data.load, Path.cwd(), "data", DataError)
    loaded = call(loader, recipe.data.arguments, f"data {recipe.data.load}", DataError)
    return load_splits(loaded, recipe.seed, recipe.data.load, augment_source=source_fingerprint(loader))


def load_teacher(recipe: Recipe, data: Splits) -> tuple[Artifact[nn.Module], str]:
    """The teacher with its weights, in evaluation mode and without gradients, and the fingerprint of its source."""
    where = f"teacher {recipe.teacher.build}"
    builder = load_callable(recipe.teacher.build, Path.cwd(), "teacher", ModelError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # a builder that initialises weights does so by the recipe's seed
        model = call(builder, recipe.teacher.arguments, where, ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} returned a {type(model).__name__}", do="return a torch.nn.Module")
    if recipe.teacher.weights is not None:
        load_weights(model, Path(recipe.teacher.weights))
    model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = recipe.teacher.inputs
    if inputs is None:
        inputs = input_specs(data.train, list(inspect.signature(model.forward).parameters))
    return Artifact(model, inputs, (_output(model, inputs, where),)), source_fingerprint(builder)


@torch.no_grad()
def _output(model: nn.Module, inputs: tuple[TensorSpec, ...], where: str) -> TensorSpec:
    try:
        output = model(*(example(spec, 2) for spec in inputs))
    except Exception as error:
        shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in inputs)
        raise ModelError(
            f"{where}: forward() fails on the data's inputs ({shapes}): {type(error).__name__}: {error}",
            do="make the data's inputs fit the teacher's forward(), in order, shape and dtype",
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(f"{where}: forward() gives a {type(output).__name__}", do="return one tensor of logits")
    return TensorSpec(name="logits", shape=("batch", *output.shape[1:]), dtype=str(output.dtype).removeprefix("torch."))
