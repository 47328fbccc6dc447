"""What a device file answers: its outputs over a split in the target's runtime, held to torch's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir
import torch

from kdc.core import verify
from kdc.core.cascade import Cascade
from kdc.core.contract import Fact
from kdc.core.data import Split
from kdc.core.observe import Progress
from kdc.core.spec import DeviceFile
from kdc.core.store import Entry, Parts, key_of
from kdc.distill.teacher import EVALUATION_BATCH, fast, predict
from kdc.driver.plan import facts_of
from kdc.driver.sources import digest, digests, versions
from kdc.driver.steps import Made, Steps
from passes.export.staged import HOST, write
from passes.export.staged import split as stage
from targets.parts import sha256_of_parts
from targets.runtime import Engine, runtime_of

Array = np.ndarray[Any, Any]
OUTPUTS, TAKEN = "outputs.npy", "exits.npy"


class Evaluation:
    """Runs files of one recipe over its splits; what they answered is stored."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.inputs = steps, steps.inputs
        self.runtime = runtime_of(self.inputs.device)

    def validation(self, made: Made, file: DeviceFile, onnx: Path) -> Entry:
        """The file's outputs on the validation split in the runtime, and how far they are from torch's; stored.

        A cascade is held to the law that torch, its file and its staged files decide alike.

        Args: onnx: the ONNX file that it was built from.
        """
        # Its parity is to the torch model of this key, by the law as it stands.
        laws = {"model": made.key, "laws": digest("kdc.core.verify")}
        name, parts = f"{made.name}+evaluate", {**self._parts(file, "validation"), **laws}
        entry = self.steps.store.find(name, key_of(parts))
        if entry is not None:
            return entry
        split, task = self.inputs.data.validation, self.inputs.task
        outputs, taken = self._run(file, split, f"{made.name}: validation")
        expected = predict(made.artifact.model, split).numpy()
        labels = split.labels.numpy()
        points = [100.0 * float(task.scores(o, labels).mean()) for o in (expected, outputs)]
        floating = Fact.FLOAT in facts_of(made.artifact.lineage, self.inputs.device)
        error = verify.parity(made.name, expected, outputs, floating, points, self.inputs.device.floats)
        record = {"parity": error, "points": points}
        if not isinstance(made.artifact.model, Cascade):
            return self.steps.store.write(name, parts, record, _writers(outputs, taken))
        with TemporaryDirectory(prefix="kdc-staged-") as folder:
            plan = write(stage(onnx_ir.load(onnx), self.inputs.teacher.inputs), Path(folder))
            staged = DeviceFile(plan, file.runtime)
            _, taken_there = self._run(staged, split, f"{made.name}: validation in stages", batch=1)
            decisions = {"torch": decided(made.artifact.model, split), "file": taken, "stages": taken_there}
            record["disagreeing"] = verify.same_decisions(made.name, decisions, floating)
            files = {path.name: partial(shutil.copyfile, path) for path in self.runtime.files(staged)}
            files[HOST] = partial(shutil.copyfile, plan.with_name(HOST))
            return self.steps.store.write(name, parts, record, {**_writers(outputs, taken), **files})

    def test(self, name: str, file: DeviceFile) -> tuple[Array, Array | None]:
        """A file's outputs and exits on the test split: for the student that won and what it is compared with."""
        what, parts = f"{name}: test", self._parts(file, "test")
        entry = self.steps.store.find(f"{name}+test", key_of(parts))
        if entry is None:
            outputs, taken = self._run(file, self.inputs.data.test, what)
            entry = self.steps.store.write(f"{name}+test", parts, {}, _writers(outputs, taken))
        return loaded(entry)

    def _run(
        self, file: DeviceFile, split: Split, what: str, batch: int = EVALUATION_BATCH
    ) -> tuple[Array, Array | None]:
        def report(done: int) -> None:
            self.steps.emit(Progress(what, done, len(split), "samples"))

        return run_over(self.runtime.load(file, self.inputs.device), split, report, batch)

    def _parts(self, file: DeviceFile, split: str) -> Parts:
        return {
            "file": sha256_of_parts(file, self.runtime),
            "split": split,
            "batch": EVALUATION_BATCH,
            "data": self.inputs.data.fingerprint,
            "task": self.inputs.task.name,
            "device": self.inputs.device.model_dump(mode="json"),
            "runtime": versions((self.inputs.device.runtime,)),
            "source": digests(type(self.runtime).__module__) | digests(type(self.inputs.task).__module__),
        }


def run_over(
    engine: Engine,
    split: Split,
    report: Callable[[int], None] = lambda done: None,
    batch: int = EVALUATION_BATCH,
) -> tuple[Array, Array | None]:
    """A loaded file's outputs over a split, [n, ...], and the exits taken, [n], where it tells them.

    A file whose batch size is fixed is run in such batches, others in batches of `batch` (kernels may sum in another
    order for another size); `report` is told how many samples are done.
    """
    size = engine.inputs[0].shape[0]
    outputs: list[Array] = []
    taken: list[Array] = []
    done, told = 0, 0
    for part in split.batches(size if isinstance(size, int) else batch):
        found = engine.run([tensor.numpy() for tensor in part.inputs])
        outputs.append(found[0])
        taken += found[1:2]
        done += len(part)
        if done - told >= EVALUATION_BATCH or done == len(split):
            report(told := done)
    return np.concatenate(outputs), np.concatenate(taken) if taken else None


@torch.no_grad()
def decided(cascade: Cascade, split: Split) -> Array:
    """At which exit each sample of a split leaves the torch model, [n]."""
    parts = [cascade.route(*map(fast, batch.inputs))[1] for batch in split.batches(EVALUATION_BATCH)]
    found: Array = torch.cat(parts).numpy()
    return found


def _writers(outputs: Array, taken: Array | None) -> dict[str, Callable[[Path], object]]:
    arrays = {OUTPUTS: outputs, **({} if taken is None else {TAKEN: taken})}
    return {name: partial(_save, array) for name, array in arrays.items()}


def _save(array: Array, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def loaded(entry: Entry) -> tuple[Array, Array | None]:
    """The outputs and the exits of a stored evaluation."""
    outputs: Array = np.load(entry.file(OUTPUTS), allow_pickle=False)
    return outputs, np.load(entry.file(TAKEN), allow_pickle=False) if TAKEN in entry.record["files"] else None
