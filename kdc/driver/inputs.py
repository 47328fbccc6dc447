"""What a recipe names, loaded and checked: the teacher, the data, the task, the device."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.contract import Task
from kdc.core.data import Split, Splits
from kdc.core.device import Device
from kdc.core.errors import DataError, ModelError
from kdc.core.observe import Emit, silent
from kdc.core.spec import TensorSpec
from kdc.core.store import Parts, Store
from kdc.core.usercode import call, load_callable, source_fingerprint
from kdc.core.weights import load_weights
from kdc.distill.synthesis.domain import domains_of
from kdc.driver.recipe import Recipe
from kdc.driver.synthetic import synthetic, told_of
from kdc.tasks.classification import task_of
from kdc.tasks.data import NAMES, UNLABELED, Given, check_alike, completed, input_specs, read_given
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


@dataclass(frozen=True)
class Named:
    """All that a recipe names, loaded and checked; what is left is to make the samples that it asks for."""

    recipe: Recipe
    device: Device
    task: Task
    data: Splits | Given
    teacher: Artifact[nn.Module]
    teacher_source: str

    def inputs(self, store: Store | None = None, emit: Emit = silent) -> Inputs:
        """The recipe's inputs. A training split is synthesised where the recipe asks for one, unless the store has it.

        Raises: ModelError where the synthesis fails, DataError where its samples and the user's do not fit.
        """
        data, recipe, settings = self.data, self.recipe, self.recipe.data.synthesise
        if isinstance(data, Given):
            assert settings is not None
            made = synthetic(self.teacher, builder_parts(self), settings, recipe.seed, store, emit)
            notes = (*made.notes, *told_of(set(data.splits) - {UNLABELED}))
            data = completed(data.with_train(made.split, notes), recipe.seed)
        return Inputs(recipe, self.device, self.task, data, self.teacher, self.teacher_source)


def builder_parts(inputs: Named | Inputs) -> Parts:
    """What the code that builds the teacher is, and what it is told, as parts of a key.

    Two activation functions that are called, and not held as layers, change neither the weights nor what is printed of a
    model: the arguments that choose between them are part of the key.
    """
    return {
        "teacher_source": inputs.teacher_source,
        "teacher_arguments": inputs.recipe.teacher.model_dump(mode="json")["arguments"],
    }


def load(recipe: Recipe, store: Store | None = None, emit: Emit = silent) -> Inputs:
    """Load everything that the recipe names, and synthesise what it asks for unless the store has it.

    Raises: TargetError, DataError, ModelError: one message each.
    """
    return read(recipe).inputs(store, emit)


def read(recipe: Recipe) -> Named:
    """Load everything that the recipe names.

    Raises: TargetError, DataError, ModelError: one message each, before any time is spent.
    """
    device = load_device(recipe.target)
    task = task_of(recipe.task)
    given = read_data(recipe)
    data = given if recipe.data.synthesise is not None else completed(given, recipe.seed)
    teacher, source = load_teacher(recipe, data.train if isinstance(data, Splits) else given.seen)
    splits = given.splits if isinstance(data, Given) else {name: getattr(data, name) for name in NAMES}
    outputs = tuple(example(teacher.outputs[0]).shape)
    for name, split in splits.items():
        if name != UNLABELED:
            task.check(split, name, outputs)
    if recipe.data.synthesise is not None:
        domains_of(teacher.inputs, recipe.data.synthesise.limits)
        like = Split(tuple(map(example, teacher.inputs)), torch.zeros(1, dtype=torch.int64))
        task.check(like, "synthetic samples", outputs)
        check_alike(given, like)
    return Named(recipe, device, task, data, teacher, source)


def read_data(recipe: Recipe) -> Given:
    """What the user's callable gives; nothing where the recipe has none."""
    spec = recipe.data
    if spec.load is None:
        return Given({}, "data.synthesise")
    loader = load_callable(spec.load, Path.cwd(), "data", DataError)
    loaded = call(loader, spec.arguments, f"data {spec.load}", DataError)
    return read_given(loaded, spec.load, source_fingerprint(loader), train=spec.synthesise is None)


def load_teacher(recipe: Recipe, seen: Split | None) -> tuple[Artifact[nn.Module], str]:
    """The teacher with its weights, in evaluation mode and without gradients, and the fingerprint of its source.

    Args: seen: samples that show what it takes, where the recipe does not say.
    """
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
        if seen is None:
            raise ModelError(
                f"{where}: the shapes of its inputs are not known, for {recipe.data.load} returned no samples",
                do="write teacher.inputs into the recipe, as in [{name: image, shape: [batch, 1, 28, 28]}]",
            )
        inputs = input_specs(seen, list(inspect.signature(model.forward).parameters))
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
