"""From a step's model to the device's file, and what that file is worth: its cost, its outputs, its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx import helper
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.budget import Cost
from kdc.core.contract import Context, Fact
from kdc.core.errors import KdcError, LawError
from kdc.core.observe import Note, silent
from kdc.core.reads import watched
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from kdc.core.store import Parts, key_of
from kdc.driver.again import Forecasts
from kdc.driver.clock import EVALUATE, LOWER, TIME, Timed
from kdc.driver.evaluate import Array, Evaluation, loaded
from kdc.driver.keys import forecast_with, measuring_parts
from kdc.driver.lint import lint
from kdc.driver.plan import Plan, Planned
from kdc.driver.previous import answers_of_release
from kdc.driver.steps import ONNX, Made, Steps
from kdc.numerics.cost import count
from passes.export.staged import PLAN
from targets.parts import move, remove, sha256_of_parts
from targets.quick import peak_memories, quick_latencies
from targets.runtime import running, slow_part

TOGETHER = 8  # files timed in one process beside the teacher
FORECAST_SECONDS = 1.0
SCRATCH_SAMPLES = 64
INPUTS_MOST = 1000  # timed one by one, spread evenly over the split


@dataclass(frozen=True)
class Candidate:
    """A step's model as the file that would ship, with its outputs on the validation split."""

    made: Made
    onnx: Path
    file: DeviceFile
    sha256: str
    outputs: Array
    scores: Array
    metrics: dict[str, float]
    parity: float
    taken: Array | None = None
    """At which exit each sample left, [n]; None where the model has none."""
    staged: Path | None = None
    """The folder of the same cascade as staged files with their host loop."""
    disagreeing: int = 0
    """Validation samples that torch sends to another exit than the file."""

    @property
    def label(self) -> str:
        """The compressing step's name; "teacher" for the teacher."""
        return self.made.name

    @property
    def points(self) -> float:
        """The task's headline metric on the validation split."""
        return 100.0 * float(self.scores.mean())


@dataclass(frozen=True)
class _Priced:
    """A built file and what it costs, but for its time."""

    file: DeviceFile
    parameters: int
    macs: int
    size_mb: float

    def cost(self, latency_ms: float, peak_memory_mb: float | None = None, cold_ms: float | None = None) -> Cost:
        return Cost(
            latency_ms=latency_ms,
            cold_ms=cold_ms,
            size_mb=self.size_mb,
            macs=self.macs,
            parameters=self.parameters,
            peak_memory_mb=peak_memory_mb,
        )


class Lowering:
    """Lowers and judges the models of one plan."""

    def __init__(self, steps: Steps, plan: Plan, timed: Timed = lambda what: nullcontext()) -> None:
        self.steps, self.plan, self.inputs, self.timed = steps, plan, steps.inputs, timed
        self.runtime = running(self.inputs.device)
        self.evaluation = Evaluation(steps, timed)
        self._previous: dict[str, Array] = {}
        self.inputs_most = INPUTS_MOST

    def previous(self, split: str) -> Array | None:
        """What the previous release answers on a split, [n, classes]; None where the recipe names none."""
        path = self.inputs.recipe.previous
        if path is not None and split not in self._previous:
            outputs = example(self.inputs.teacher.outputs[0]).shape[-1]
            self._previous[split] = answers_of_release(path, outputs, getattr(self.inputs.data, split))
        return self._previous.get(split)

    @cached_property
    def teacher(self) -> Candidate:
        """The teacher as the target's file; the target is seen to have its operators before anything is built."""
        return self._candidate(self.steps.root, None, lambda model: lint(model, self.inputs.device))

    def student(self, made: Made) -> Candidate:
        """A student as the target's file, held to the law of parity and judged on the validation split; stored."""
        return self._candidate(made, self.teacher.outputs, lambda model: None)

    def _candidate(self, made: Made, teacher: Array | None, see: Callable[[onnx_ir.Model], None]) -> Candidate:
        lowered, onnx = made, Path()
        of = len(self.plan.lowering)
        with self.timed(LOWER):
            for number, (name, planned) in enumerate(self.plan.lowered(made.name), start=1):
                lowered = self.steps.run(name, planned, lowered, (number, of), self.forecasts(()), self.teacher_cost)
                if Fact.DEVICE not in planned.facts:
                    onnx = self.steps.folder_of(lowered) / ONNX
                    see(lowered.artifact.model)
        file: DeviceFile = lowered.artifact.model
        slow = slow_part(self.runtime, file)
        if slow is not None:
            self.steps.emit(Note(f"{made.name}: {slow}"))
        with self.timed(EVALUATE):
            entry = self.evaluation.validation(made, file, onnx)
        outputs, taken = loaded(entry)
        labels, task = self.inputs.data.validation.labels.numpy(), self.inputs.task
        scores, metrics = (
            task.scores(outputs, labels),
            task.metrics(outputs, labels, teacher, self.previous("validation")),
        )
        parity = float(entry.record["parity"])
        staged = entry.folder if PLAN in entry.record["files"] else None
        differing = int(entry.record.get("disagreeing", 0))
        sha256 = sha256_of_parts(file, self.runtime)
        return Candidate(made, onnx, file, sha256, outputs, scores, metrics, parity, taken, staged, differing)

    def forecasts(self, rest: tuple[Planned, ...]) -> Forecasts:
        """What artifacts would cost as they are, or with the structure of the rest of the plan: the faster of the two.

        The later passes decide on the untrained student: where its latency depends on values at all, it is through the
        clipping of a few activations. A pass that measures is left out: it would forecast in its turn, and what it can
        still gain is its own affair.
        """
        structural = forecast_with(rest, self.inputs.recipe.budget)

        def costs(artifacts: Sequence[Artifact[Any]]) -> list[Cost | KdcError]:
            with scratch_folder("forecast") as folder:
                forms = [self._forms(artifact, structural, folder / str(i)) for i, artifact in enumerate(artifacts)]
                files = [priced.file for own in forms if isinstance(own, list) for priced in own]
                times_ms = dict(zip(files, self._beside_teacher(files), strict=True))
                peaks_mb = dict(zip(files, self._peaks(files), strict=True))
                cold_ms = dict(zip(files, self._cold(files), strict=True))
                found: list[Cost | KdcError] = []
                for own in forms:
                    if isinstance(own, KdcError):
                        found.append(own)
                        continue
                    best = min(
                        (one.cost(times_ms[one.file], peaks_mb[one.file], cold_ms[one.file]) for one in own),
                        key=lambda cost: cost.latency_ms,
                    )
                    self.steps.emit(Note(f"a student of {best.macs / 1e6:.2f} MMACs takes {best.latency_ms:.4f} ms"))
                    found.append(best)
            return found

        return costs

    def _forms(self, artifact: Artifact[Any], rest: Sequence[Planned], folder: Path) -> list[_Priced] | KdcError:
        """The artifact's file and that with the structure of the later passes; what kept it from being lowered."""
        try:
            forms = [self._form(artifact, folder / "0")]
            for number, planned in enumerate(rest, start=1):
                artifact = self._applied(planned, artifact, self._scratch(f"forecast.{planned.label}"))
                forms.append(self._form(artifact, folder / str(number)))
        except LawError:  # a pass's own fault, and not of the artifact
            raise
        except KdcError as error:
            return error
        return forms

    def teacher_cost(self) -> Cost:
        """What the teacher's own exported file costs on the target."""
        priced = self._priced(onnx_ir.load(self.teacher.onnx), self.teacher.file)
        return priced.cost(self._latency_ms("teacher+cost", self.teacher.file, self.samples()))

    def lowered(self, artifact: Artifact[Any], see: Callable[[onnx_ir.Model], None]) -> DeviceFile:
        """An artifact lowered outside the store; `see` is shown each ONNX model on the way. The caller deletes the file.

        One that is an ONNX model already skips the passes that take a torch model.
        """
        context = self._scratch("forecast")
        exported = isinstance(artifact.model, onnx_ir.Model)
        for planned in self.plan.lowering:
            if exported and Fact.TORCH in planned.settings.contract(self.inputs.device).requires:
                continue
            artifact = self._applied(planned, artifact, context)
            if isinstance(artifact.model, onnx_ir.Model):
                see(artifact.model)
        file: DeviceFile = artifact.model
        return file

    def _applied(self, planned: Planned, artifact: Artifact[Any], context: Context) -> Artifact[Any]:
        """The structure that a later pass gives, by the settings that are part of the key of the step that asks."""
        settings = planned.settings.structural()
        seen, reads = watched(context, settings)
        decision = settings.decide(artifact, seen)
        reads.check()
        return settings.apply(artifact, decision)

    def floor_ms(self) -> float:
        """The latency of a graph that does next to nothing with the teacher's first input: no student can be faster."""
        file = self._nothing()
        latency_ms = self._latency_ms("floor", file, self.samples()[:1])
        remove(file, self.runtime)
        return latency_ms

    def warm_up(self) -> None:
        """Lower next to nothing: what is imported for the first model would else be counted for each of them."""
        remove(self.lowered(self._flatten(_Flatten()), lambda model: None), self.runtime)

    def _nothing(self) -> DeviceFile:
        """A graph that does next to nothing with the teacher's first input. The caller deletes the file."""
        artifact = self._flatten(None)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(artifact.inputs[0].dtype))
        ends = [
            helper.make_tensor_value_info(spec.name, kind, list(spec.shape))
            for spec in (*artifact.inputs, *artifact.outputs)
        ]
        nodes = [helper.make_node("Flatten", [ends[0].name], [ends[1].name])]
        opset = helper.make_opsetid("", self.inputs.device.opset)
        graph = helper.make_graph(nodes, "nothing", ends[:1], ends[1:])
        model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[opset], ir_version=10))
        return self.lowered(artifact.with_model(model), lambda model: None)

    def _flatten(self, model: Any) -> Artifact[Any]:
        """A model that flattens the teacher's first input."""
        spec = self.inputs.teacher.inputs[0]
        flat = spec.model_copy(update={"name": "flat", "shape": (spec.shape[0], example(spec).numel())})
        return Artifact(model=model, inputs=(spec,), outputs=(flat,))

    def _latency_ms(self, name: str, file: DeviceFile, samples: list[Array]) -> float:
        """A file's latency from the store, or measured now: a run that goes on decides by the numbers it began with."""
        parts: Parts = {
            "file": sha256_of_parts(file, self.runtime),
            "data": self.inputs.data.fingerprint,
            "samples": len(samples[0]),
            **measuring_parts(self.inputs.device, "targets.quick"),
        }
        entry = self.steps.store.find(name, key_of(parts))
        if entry is None:
            with self.timed(TIME):
                (latency_ms,) = quick_latencies([file], self.inputs.device, samples)
            entry = self.steps.store.write(name, parts, {"latency_ms": latency_ms}, {})
        return float(entry.record["latency_ms"])

    def _form(self, artifact: Artifact[Any], folder: Path) -> _Priced:
        """An artifact's file in a folder of its own, with its price but for the time."""
        seen: list[onnx_ir.Model] = []
        built = self.lowered(artifact, seen.append)
        file = move(built, self.runtime, folder)
        self.runtime.load(file, self.inputs.device)  # what the runtime refuses must not end the others' timing
        return self._priced(seen[-1], file)

    def _beside_teacher(self, files: Sequence[DeviceFile]) -> list[float]:
        """Milliseconds of each file, as its share of the teacher's time in the same process times the teacher's cost.

        Forecasts are made minutes apart on a machine whose speed drifts; their ratios to the teacher's stay comparable.
        """
        found: list[float] = []
        for start in range(0, len(files), TOGETHER):
            some = files[start : start + TOGETHER]
            seconds = FORECAST_SECONDS / len(some) ** 0.5
            *own_ms, beside_ms = quick_latencies(
                [*some, self.teacher.file], self.inputs.device, self.samples(), seconds
            )
            found += [ms / beside_ms * self.teacher_cost().latency_ms for ms in own_ms]
        return found

    def _cold(self, files: Sequence[DeviceFile]) -> Sequence[float | None]:
        """Each file's latency of cold runs in ms, where the budget limits it.

        A limit is in milliseconds and the teacher is no part of it: the files are timed by themselves.
        """
        if self.inputs.recipe.budget.latency_ms_cold is None:
            return [None] * len(files)
        found: list[float] = []
        for start in range(0, len(files), TOGETHER):
            some = files[start : start + TOGETHER]
            found += quick_latencies(
                some, self.inputs.device, self.samples(), FORECAST_SECONDS / len(some) ** 0.5, cold=True
            )
        return found

    def _peaks(self, files: Sequence[DeviceFile]) -> Sequence[float | None]:
        """Each file's peak memory in MB, where the budget limits it: it takes a process for each."""
        if self.inputs.recipe.budget.peak_memory_mb is None:
            return [None] * len(files)
        return peak_memories(files, self.inputs.device, self.samples())

    def _priced(self, model: onnx_ir.Model, file: DeviceFile) -> _Priced:
        """The price of a model and its file, but for the time."""
        parameters, macs = count(model)
        size_mb = sum(path.stat().st_size for path in self.runtime.files(file)) / 1e6
        return _Priced(file, parameters, macs, size_mb)

    def samples(self, count: int = 32) -> list[Array]:
        """Real inputs, [count, ...] each, for timing."""
        return [tensor[:count].numpy() for tensor in self.inputs.data.validation.inputs]

    def _scratch(self, name: str) -> Context:
        """A context for deciding on what will be thrown away: a few calibration samples tell its structure's cost."""
        context = self.steps.context(name, key_of({"scratch": name}), self.forecasts(()), self.teacher_cost)
        few = context.data.calibration[:SCRATCH_SAMPLES]
        return replace(context, emit=silent, data=replace(context.data, calibration=few))


class _Flatten(nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(1)
