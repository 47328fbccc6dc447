"""Whether a finished run still is what its report says: checksums, structure, parity, metric."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kdc.core import verify
from kdc.core.artifact import Artifact, Step
from kdc.core.cascade import Cascade
from kdc.core.contract import Fact
from kdc.core.errors import FolderError, LawError
from kdc.core.spec import DeviceFile
from kdc.core.store import Store
from kdc.distill.teacher import predict
from kdc.driver import folder
from kdc.driver.compress import LOCK, REPORT, STAGED, STRUCTURE
from kdc.driver.evaluate import Array, decided, engines, run_over
from kdc.driver.inputs import Inputs, load
from kdc.driver.plan import facts_of
from kdc.driver.recipe import load_recipe
from kdc.driver.report import Report
from kdc.driver.steps import WEIGHTS
from passes import PASSES
from targets.cascade import is_cascade
from targets.door.admit import admit


@dataclass(frozen=True)
class Checked:
    """What was checked of a run, in words, and the metric found."""

    lines: tuple[str, ...]


def check(out: Path) -> Checked:
    """Check a finished run from its own files alone.

    Raises: FolderError where a file is missing or changed; LawError where the student no longer does what the report says.
    """
    problems = folder.damaged(out)
    if problems:
        raise FolderError(
            f"{out}: " + "; ".join(problems), do="run `kdc compress` again with --force: finished steps are kept"
        )
    lines = ["checksums: every file is as it was written"]
    report = Report.model_validate_json((out / REPORT).read_text())
    inputs = load(
        load_recipe(out / LOCK, {}, [], PASSES),
        Store(out / folder.PRIVATE / "store"),
        allow_torchscript=True,  # no teacher but the recipe's own is called here
    )
    student = rebuild(out, inputs)
    lines.append(f"structure: rebuilt from {STRUCTURE} and {WEIGHTS}, {len(student.lineage)} steps replayed")
    split, task = inputs.data.test, inputs.task
    labels = split.labels.numpy()
    exported, taken = _run(out / report.ships, inputs)
    expected = predict(student.model, split).numpy()
    points = [100.0 * float(task.scores(outputs, labels).mean()) for outputs in (expected, exported)]
    floating = Fact.FLOAT in facts_of(student.lineage, inputs.device)
    error = verify.parity(report.ships, expected, exported, floating, points, inputs.device.floats)
    lines.append(f"parity: torch and {report.ships} differ by at most {error:.2g} of the outputs' size")
    if isinstance(student.model, Cascade):
        _, there = _run(out / STAGED, inputs, batch=1) if report.ships != STAGED else (exported, taken)
        decisions = {"torch": decided(student.model, split), "file": taken, "stages": there}
        differing = verify.same_decisions(report.ships, decisions, floating)
        lines.append(f"decisions: the files agree on every sample's exit; torch differs on {differing} of {len(split)}")
    stated = report.student.metric.points
    if abs(points[1] - stated) > 1e-6:
        raise LawError(f"{report.ships} scores {points[1]:.2f} on the test split, the report says {stated:.2f}")
    lines.append(f"metric: {task.metric} {points[1]:.2f} on the test split, as in the report")
    return Checked(tuple(lines))


def _run(path: Path, inputs: Inputs, batch: int | None = None) -> tuple[Array, Array | None]:
    """Args: batch: in place of the target's own."""
    if path.suffix == ".onnx" or is_cascade(path):
        admit(path)  # a run's folder may have come from somebody else
    device = inputs.device
    loaded = engines(DeviceFile(path, device.runtime), device, len(inputs.data.test))
    return run_over(loaded, inputs.data.test, batch or device.batch)


def rebuild(out: Path, inputs: Inputs) -> Artifact[torch.nn.Module]:
    """The student of a run as a torch model: the teacher's code, each step's decision replayed, the weights loaded."""
    structure = json.loads((out / STRUCTURE).read_text())
    artifact = inputs.teacher
    for stored in structure["steps"]:
        step = Step.model_validate(stored)
        settings = PASSES[step.kind].model_validate(step.settings)
        decision = settings.decision_type.model_validate(step.decision)
        artifact = settings.apply(artifact, decision).with_step(step)
    artifact.model.load_state_dict(load_file(out / WEIGHTS))
    artifact.model.eval()
    return artifact
