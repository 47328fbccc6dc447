"""One step: look it up; else decide, apply, tune, hold it to the laws, and store it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from kdc.core import verify
from kdc.core.artifact import Artifact, Step
from kdc.core.budget import Cost
from kdc.core.changed import with_origins
from kdc.core.contract import FINDINGS, Context, Fact
from kdc.core.deadline import Deadline, given_up_in, without_other_limits
from kdc.core.errors import DamagedError, KdcError
from kdc.core.observe import Emit, Note, StepFinished, StepStarted
from kdc.core.reads import watched
from kdc.core.spec import DeviceFile
from kdc.core.store import KEY_DIGITS, Entry, Parts, Store, key_of
from kdc.core.weights import save_weights
from kdc.core.writing import discard, make_folder, read_checked, write_checked
from kdc.distill.cache import claim
from kdc.distill.loop import CHECKPOINT
from kdc.driver.again import Figures, Forecasts, GoOn, Recorded
from kdc.driver.inputs import Inputs
from kdc.driver.keys import cache_parts, root_parts, step_parts
from kdc.driver.plan import Planned
from targets.runtime import runtime_of

GAVE_UP = "compile_minutes"  # among a step's findings: what the limit on the run's time cost it
WEIGHTS, ONNX, DECISION = "weights.safetensors", "model.onnx", "decision.json"


@dataclass(frozen=True)
class Made:
    """A step's name in the store, its artifact, and the key that it is stored under."""

    name: str
    artifact: Artifact[Any]
    key: str


@dataclass(frozen=True)
class Kept:
    """Where the teacher's answers are kept, and how much of them: a folder that runs share, or None: the run's own."""

    folder: Path | None = None
    gigabytes: float | None = None  # None: a share of the disk; 0: none are kept


class Steps:
    """Runs steps of one recipe through one store."""

    def __init__(self, inputs: Inputs, store: Store, emit: Emit, kept: Kept | None = None) -> None:
        self.inputs, self.store, self.emit = inputs, store, emit
        self.kept = kept or Kept()
        if self.kept.folder is not None:
            parts = root_parts(inputs)
            data = parts.pop("data")
            claim(self.kept.folder, key_of(parts), data)
        self.root = Made("teacher", inputs.teacher, key_of(root_parts(inputs)))

    def run(
        self,
        name: str,
        planned: Planned,
        previous: Made,
        place: tuple[int, int],
        forecasts: Forecasts,
        teacher_cost: Callable[[], Cost],
        deadline: Callable[[Path], Deadline | None] = lambda work: None,
    ) -> Made:
        """The step's artifact, from the store or made now. `place` is its number and of how many.

        Args: deadline: when the step that keeps its checkpoints in this folder must have ended.
        """
        stored = self.stored(name, planned, previous)
        self.emit(StepStarted(name, *place, stored=stored is not None))
        if stored is not None:
            return stored
        parts = step_parts(planned.settings, previous.key, self.inputs, planned.after)
        key, began = key_of(parts), time.monotonic()
        try:
            context, artifact, step = self._made(name, key, planned, previous, forecasts, teacher_cost, deadline)
        except KdcError as error:
            self.store.fail(name, parts, error)
            raise
        step = step.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
        files = {
            DECISION: lambda path: path.write_text(json.dumps(step.decision, indent=1)),
            **self._files(artifact.model),
        }
        minutes, given_up = given_up_in(context.work)
        if minutes is not None:  # another limit, or none, would have given another step
            parts = shortened(parts, minutes)
            key = key_of(parts)
            context.find(GAVE_UP, list(given_up.values()))
        found = context.work / FINDINGS
        record = {
            "step": step.model_dump(mode="json"),
            "findings": read_checked(found) if found.exists() else {},
            "model": next(name for name in files if name != DECISION),
            **_graph_record(artifact.model),
        }
        entry = self.store.write(name, parts, record, files)
        shutil.rmtree(context.work, ignore_errors=True)
        self.emit(StepFinished(name, step.seconds))
        artifact = artifact.with_step(step)
        if isinstance(artifact.model, DeviceFile):
            artifact = _load(entry, planned, previous.artifact, self.inputs.device.runtime)
        return Made(name, artifact, key)

    def _made(
        self,
        name: str,
        key: str,
        planned: Planned,
        previous: Made,
        forecasts: Forecasts,
        teacher_cost: Callable[[], Cost],
        deadline: Callable[[Path], Deadline | None],
    ) -> tuple[Context, Artifact[Any], Step]:
        """The step made now, with its context: gone on with in its work folder, or begun anew where that is damaged."""

        def once() -> tuple[Context, Artifact[Any], Step]:
            told = Recorded(forecasts, teacher_cost)
            context = self.context(name, key, told.forecasts, told.teacher_cost)
            without_other_limits(context.work, self.inputs.recipe.budget.compile_minutes)
            context = replace(context, deadline=deadline(context.work), again=self._again(context, told.figures))
            return context, *self.make(planned, previous.artifact, context)

        try:
            return once()
        except DamagedError as error:
            self.emit(Note(f"{name}: its work is damaged ({error}): the step is begun anew"))
            discard(self.store.work(key))
            return once()

    def stored(self, name: str, planned: Planned, previous: Made) -> Made | None:
        """The step as it is in the store; None where it is not there."""
        parts, entry = self.found(name, planned, previous)
        if entry is None:
            return None
        try:
            artifact = _load(entry, planned, previous.artifact, self.inputs.device.runtime)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            # It is as it was written, and yet no step of this plan; what is made anew tells whether the fault is ours.
            self.store.drop(name, key_of(parts), f"it cannot be loaded: {type(error).__name__}")
            return None
        return Made(name, artifact, key_of(parts))

    def found(self, name: str, planned: Planned, previous: Made) -> tuple[Parts, Entry | None]:
        """What the step's key is made of, and its entry: the whole step, else the one that today's limit shortened."""
        parts = step_parts(planned.settings, previous.key, self.inputs, planned.after)
        return find_step(self.store, name, parts, self.inputs)

    def entry_of(self, made: Made) -> Entry:
        """The stored step."""
        entry = self.store.find(made.name, made.key)
        assert entry is not None
        return entry

    def folder_of(self, made: Made) -> Path:
        """The stored step's folder."""
        return self.entry_of(made).folder

    def _files(self, model: Any) -> dict[str, Callable[[Path], object]]:
        """What writes each file of a model; the one that the others belong to comes first."""
        if isinstance(model, nn.Module):
            return {WEIGHTS: lambda path: save_weights(model.state_dict(), path)}
        if isinstance(model, onnx_ir.Model):
            return {ONNX: lambda path: onnx_ir.save(model, path)}
        files = [*runtime_of(self.inputs.device).files(model), *([model.graph] if model.graph is not None else [])]
        return {file.name: partial(shutil.copyfile, file) for file in files}

    def context(self, name: str, key: str, forecasts: Forecasts, teacher_cost: Callable[[], Cost]) -> Context:
        """What a pass of this step may use."""
        inputs = self.inputs
        cache = self.kept.folder or self.store.root / "cache"
        return Context(
            step=name,
            device=inputs.device,
            task=inputs.task,
            data=inputs.data,
            teacher=inputs.teacher.model,
            budget=inputs.recipe.budget,
            seed=inputs.recipe.seed,
            work=self.store.work(key),
            cache=cache / key_of(cache_parts(inputs))[:KEY_DIGITS],
            cache_root=cache,
            cache_bytes=None if self.kept.gigabytes is None else int(self.kept.gigabytes * 1e9),
            emit=self.emit,
            teacher_cost=teacher_cost,
            forecasts=forecasts,
            allow_torchscript=inputs.allow_torchscript,
        )

    def _again(self, context: Context, figures: Figures) -> GoOn:
        """How another process goes on with the step of this context."""
        kept = self.kept
        return GoOn(
            self.inputs.recipe, context.step, context.work, self.store.root, kept.folder, kept.gigabytes, figures,
            self.inputs.allow_torchscript,
        )  # fmt: skip

    def make(self, planned: Planned, incoming: Artifact[Any], context: Context) -> tuple[Artifact[Any], Step]:
        """The step made in its context's work folder: gone on with where it was begun there."""
        name, settings = context.step, planned.settings
        data = context.data  # the watched context hides the test split
        context, reads = watched(context, settings)
        make_folder(context.work)
        digest, samples = incoming.digest(), data.digest()
        if os.path.lexists(context.work / FINDINGS):
            read_checked(context.work / FINDINGS)  # seen now, and not when hours of training have gone by
        kept = context.work / DECISION
        if os.path.lexists(kept):
            decision = settings.decision_type.model_validate_json(json.dumps(read_checked(kept)))
        else:
            # Kept before the training starts: a decision made by measuring would not come out the same again.
            decision = settings.decide(incoming, context)
            reads.check()
            write_checked(kept, decision.model_dump(mode="json"))
        applied = with_origins(incoming, settings.apply(incoming, decision), settings.kind)
        if isinstance(applied.model, nn.Module):
            verify.same_structure(name, applied.model, settings.apply(incoming, decision).model)
        tuned = settings.tune(applied, context)
        reads.check()
        verify.untouched(name, digest, incoming)
        verify.same_interface(name, incoming, tuned)
        if isinstance(tuned.model, nn.Module):
            probe = self.inputs.data.calibration[:16].inputs
            verify.finite(name, tuned.model.eval(), probe)
        verify.same_samples(name, samples, data)
        step = Step(
            kind=settings.kind,
            version=settings.version,
            settings=settings.model_dump(mode="json"),
            decision=decision.model_dump(mode="json"),
            seed=context.seed,
        )
        return tuned, step


def begun(store: Store, names: Iterable[str]) -> bool:
    """Whether a step of these names is in the store, or a training of an earlier command has a checkpoint."""
    return any(store.entries(name) for name in names) or any((store.root / "work").rglob(CHECKPOINT))


def shortened(parts: Parts, minutes: float) -> Parts:
    """What the key of a step is made of that gave something up for a limit on the run's time."""
    return {**parts, "compile_minutes": minutes}


def find_step(store: Store, name: str, parts: Parts, inputs: Inputs) -> tuple[Parts, Entry | None]:
    """A stored step, and what its key is made of: the whole step of these parts, else that which today's limit shortened."""
    entry = store.find(name, key_of(parts))
    minutes = inputs.recipe.budget.compile_minutes
    if entry is None and minutes is not None:
        entry = store.find(name, key_of(shortened(parts, minutes)))
        if entry is not None:
            return entry.parts, entry
    return parts, entry


def _graph_record(model: Any) -> dict[str, str]:
    """The name of the ONNX file that lies beside a file of a runtime's own format."""
    return {"graph": model.graph.name} if isinstance(model, DeviceFile) and model.graph is not None else {}


def _load(entry: Entry, planned: Planned, previous: Artifact[Any], runtime: str) -> Artifact[Any]:
    """A stored step's artifact: its decision replayed on the artifact before it, then its weights loaded."""
    step = Step.model_validate(entry.record["step"])
    if Fact.TORCH in planned.facts:
        decision = planned.settings.decision_type.model_validate(step.decision)
        artifact = with_origins(previous, planned.settings.apply(previous, decision), step.kind)
        artifact.model.load_state_dict(load_file(entry.file(WEIGHTS)))
        artifact.model.eval()
    elif Fact.DEVICE in planned.facts:
        graph = entry.file(entry.record["graph"]) if "graph" in entry.record else None
        artifact = previous.with_model(DeviceFile(entry.file(entry.record["model"]), runtime, graph))
    else:
        artifact = previous.with_model(onnx_ir.load(entry.file(ONNX)))
    return artifact.with_step(step)
