"""From a step's model to the device's file, and what that file is worth: its cost, its outputs, its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import nn

from kdc.core import verify
from kdc.core.artifact import Artifact, example
from kdc.core.budget import Cost
from kdc.core.contract import Context, Fact
from kdc.core.data import Split
from kdc.core.observe import Note, Progress
from kdc.core.spec import DeviceFile
from kdc.core.store import Parts, key_of, sha256_of
from kdc.distill.teacher import EVALUATION_BATCH, predict
from kdc.driver.plan import Plan, Planned
from kdc.driver.sources import digests, versions
from kdc.driver.steps import ONNX, Made, Steps
from kdc.numerics.cost import count
from targets.measure import quick_latencies
from targets.runtime import runtime_of

Array = np.ndarray[Any, Any]
OUTPUTS = "outputs.npy"


@dataclass(frozen=True)
class Candidate:
    """A step's model as the file that would ship, with its outputs on the validation split."""

    label: str
    made: Made
    onnx: Path
    file: DeviceFile
    sha256: str
    outputs: Array
    scores: Array
    metrics: dict[str, float]
    parity: float

    @property
    def points(self) -> float:
        """The task's headline metric on the validation split."""
        return 100.0 * float(self.scores.mean())


class Lowering:
    """Lowers and judges the models of one plan."""

    def __init__(self, steps: Steps, plan: Plan) -> None:
        self.steps, self.plan, self.inputs = steps, plan, steps.inputs
        self.runtime = runtime_of(self.inputs.device)
        self._teacher: tuple[DeviceFile, Cost] | None = None

    def candidate(
        self, label: str, made: Made, teacher: Candidate | None, check: Callable[[onnx_ir.Model], None] | None = None
    ) -> Candidate:
        """The model lowered, held to the law of parity, and judged on the validation split; stored.

        `check` sees the exported model before anything is built or run.
        """
        lowered, onnx = made, Path()
        of = len(self.plan.lowering)
        for number, planned in enumerate(self.plan.lowering, start=1):
            name = f"{label}+{planned.label}"
            lowered = self.steps.run(name, planned, lowered, (number, of), self.forecast(()), self.teacher_cost)
            if Fact.DEVICE not in planned.facts:
                onnx = self.steps.folder_of(lowered) / ONNX
                if check is not None:
                    check(lowered.artifact.model)
        file: DeviceFile = lowered.artifact.model
        floating = Fact.FLOAT in self._facts(label)
        outputs, parity = self._outputs(label, made, file, floating)
        split, task = self.inputs.data.validation, self.inputs.task
        labels = split.labels.numpy()
        metrics = task.metrics(outputs, labels, None if teacher is None else teacher.outputs)
        scores = task.scores(outputs, labels)
        return Candidate(label, made, onnx, file, sha256_of(file.path), outputs, scores, metrics, parity)

    def _facts(self, label: str) -> frozenset[Fact]:
        """What holds after the compressing pass of this label; the teacher is float."""
        return next((p.facts for p in self.plan.compress if p.label == label), frozenset({Fact.FLOAT}))

    def _outputs(self, label: str, made: Made, file: DeviceFile, floating: bool) -> tuple[Array, float]:
        """The file's outputs on the validation split in the runtime, and how far they are from torch's."""
        name = f"{label}+evaluate"
        parts = self._evaluation_parts(file, "validation")
        entry = self.steps.store.find(name, key_of(parts))
        if entry is None:
            split, task = self.inputs.data.validation, self.inputs.task
            outputs = self.run(file, split, f"{label}: validation")
            expected = predict(made.artifact.model, split).numpy()
            labels = split.labels.numpy()
            points = [100.0 * float(task.scores(o, labels).mean()) for o in (expected, outputs)]
            error = verify.parity(label, expected, outputs, floating, points)
            entry = self.steps.store.write(
                name, parts, {"parity": error, "points": points}, {OUTPUTS: lambda path: _save(path, outputs)}
            )
        loaded: Array = np.load(entry.file(OUTPUTS), allow_pickle=False)
        return loaded, float(entry.record["parity"])

    def test_outputs(self, candidate: Candidate) -> Array:
        """The file's outputs on the test split: asked for once, for the student that won and for the teacher."""
        name, parts = f"{candidate.label}+test", self._evaluation_parts(candidate.file, "test")
        entry = self.steps.store.find(name, key_of(parts))
        if entry is None:
            outputs = self.run(candidate.file, self.inputs.data.test, f"{candidate.label}: test")
            entry = self.steps.store.write(name, parts, {}, {OUTPUTS: lambda path: _save(path, outputs)})
        loaded: Array = np.load(entry.file(OUTPUTS), allow_pickle=False)
        return loaded

    def run(self, file: DeviceFile, split: Split, what: str) -> Array:
        """A file's outputs over a split, in the target's runtime."""
        engine = self.runtime.load(file, self.inputs.device)
        outputs: list[Array] = []
        for batch in split.batches(EVALUATION_BATCH):
            outputs.append(engine.run([tensor.numpy() for tensor in batch.inputs])[0])
            self.steps.emit(Progress(what, sum(map(len, outputs)), len(split), "sample"))
        return np.concatenate(outputs)

    def _evaluation_parts(self, file: DeviceFile, split: str) -> Parts:
        return {
            "file": sha256_of(file.path),
            "split": split,
            "data": self.inputs.data.fingerprint,
            "task": self.inputs.task.name,
            "device": self.inputs.device.model_dump(mode="json"),
            "runtime": versions((self.inputs.device.runtime,)),
            "source": digests(type(self.runtime).__module__) | digests(type(self.inputs.task).__module__),
        }

    def forecast(self, rest: tuple[Planned, ...]) -> Callable[[Artifact[Any]], Cost]:
        """What an artifact would cost as it is, or with the structure of the rest of the plan: the faster of them.

        The later passes decide on the untrained student: where its latency depends on values at all, it is through the
        clipping of a few activations.
        """

        def cost(artifact: Artifact[Any]) -> Cost:
            forms = [self._cost(artifact)]
            for planned in rest:
                name = f"forecast.{planned.label}"
                context = self._scratch(name)
                if planned.settings.measures(context.budget):
                    break  # it would forecast in its turn; what it can still gain is its own affair
                artifact = planned.settings.apply(artifact, planned.settings.decide(artifact, context))
                forms.append(self._cost(artifact))
            best = min(forms, key=lambda form: form.latency_ms)
            self.steps.emit(Note(f"a student of {best.macs / 1e6:.2f} MMACs takes {best.latency_ms:.4f} ms"))
            return best

        return cost

    def teacher_cost(self) -> Cost:
        """What the teacher's own exported file costs on the target."""
        if self._teacher is None:
            file, cost = self._unmeasured(self.inputs.teacher)
            (latency_ms,) = quick_latencies([file], self.inputs.device, self.samples())
            self._teacher = file, cost(latency_ms)
        return self._teacher[1]

    def lowered(self, artifact: Artifact[Any], see: Callable[[onnx_ir.Model], None]) -> DeviceFile:
        """An artifact lowered outside the store; `see` is shown each ONNX model on the way. The caller deletes the file."""
        context = self._scratch("forecast")
        for planned in self.plan.lowering:
            artifact = planned.settings.apply(artifact, planned.settings.decide(artifact, context))
            if isinstance(artifact.model, onnx_ir.Model):
                see(artifact.model)
        file: DeviceFile = artifact.model
        return file

    def floor_ms(self) -> float:
        """The latency of a graph that does next to nothing with the teacher's first input: no student can be faster."""
        spec = self.inputs.teacher.inputs[0]
        flat = spec.model_copy(update={"name": "flat", "shape": (spec.shape[0], example(spec).numel())})
        nothing = Artifact(model=_Flatten(), inputs=(spec,), outputs=(flat,))
        file = self.lowered(nothing, lambda model: None)
        (latency_ms,) = quick_latencies([file], self.inputs.device, self.samples()[:1], seconds=0.3)
        file.path.unlink()
        return latency_ms

    def _cost(self, artifact: Artifact[Any]) -> Cost:
        """The cost of an artifact, its latency as a share of the teacher's in the same process.

        Forecasts are made minutes apart on a machine whose speed drifts; their ratios to the teacher's stay comparable.
        """
        teacher_ms = self.teacher_cost().latency_ms
        assert self._teacher is not None
        file, cost = self._unmeasured(artifact)
        own_ms, beside_ms = quick_latencies([file, self._teacher[0]], self.inputs.device, self.samples())
        file.path.unlink()
        return cost(own_ms / beside_ms * teacher_ms)

    def _unmeasured(self, artifact: Artifact[Any]) -> tuple[DeviceFile, Callable[[float], Cost]]:
        """An artifact's lowered file, and its cost but for the latency."""
        seen: list[onnx_ir.Model] = []
        file = self.lowered(artifact, seen.append)
        parameters, macs = count(seen[-1])
        size_mb = sum(path.stat().st_size for path in self.runtime.files(file)) / 1e6
        return file, lambda ms: Cost(latency_ms=ms, size_mb=size_mb, macs=macs, parameters=parameters)

    def samples(self, count: int = 32) -> list[Array]:
        """Real inputs, [count, ...] each, for timing."""
        return [tensor[:count].numpy() for tensor in self.inputs.data.calibration.inputs]

    def _scratch(self, name: str) -> Context:
        return self.steps.context(name, key_of({"scratch": name}), self.forecast(()), self.teacher_cost)


class _Flatten(nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flatten(1)


def _save(path: Path, outputs: Array) -> None:
    with path.open("wb") as file:
        np.save(file, outputs, allow_pickle=False)
