"""What a device file answers: its outputs over a split in the target's runtime, held to torch's.

A file is always run at the batch that the target runs, for validation too: an integer file whose scales are of the batch
answers otherwise at another, and what is chosen by validation is what ships. One sample at a time costs about what timing
a file costs: ten thousand samples of 1 ms are ten seconds, shared by the cores where the runtime allows it.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import onnx_ir
import torch

from kdc.core import verify
from kdc.core.cascade import Cascade
from kdc.core.contract import Fact
from kdc.core.data import Split
from kdc.core.device import Device
from kdc.core.observe import Progress
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from kdc.core.store import Entry, Parts, key_of
from kdc.distill.teacher import EVALUATION_BATCH, predict
from kdc.driver.clock import RUN, Timed
from kdc.driver.plan import facts_of
from kdc.driver.sources import digest, digests, versions
from kdc.driver.steps import Made, Steps
from passes.export.staged import HOST, write
from passes.export.staged import split as stage
from targets.parts import sha256_of_parts
from targets.proc import allowed_cores
from targets.runtime import Engine, SideBySide, runtime_of

Array = np.ndarray[Any, Any]
REPORTED = 250  # samples from one report of progress to the next
ENGINES_MOST = 8  # each holds the file's weights
GLANCE = 2 * EVALUATION_BATCH  # samples by which the time of a whole split is told
OUTPUTS, TAKEN = "outputs.npy", "exits.npy"


class Evaluation:
    """Runs files of one recipe over its splits; what they answered is stored."""

    def __init__(self, steps: Steps, timed: Timed = lambda what: nullcontext()) -> None:
        self.steps, self.inputs, self.timed = steps, steps.inputs, timed
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
        with self.timed(RUN):
            outputs, taken = self._run(file, split, f"{made.name}: validation")
        expected = predict(made.artifact.model, split).numpy()
        labels = split.labels.numpy()
        points = [100.0 * float(task.scores(o, labels).mean()) for o in (expected, outputs)]
        floating = Fact.FLOAT in facts_of(made.artifact.lineage, self.inputs.device)
        error = verify.parity(made.name, expected, outputs, floating, points, self.inputs.device.floats)
        record = {"parity": error, "points": points}
        if not isinstance(made.artifact.model, Cascade):
            return self.steps.store.write(name, parts, record, _writers(outputs, taken))
        with scratch_folder("staged") as folder:
            plan = write(stage(onnx_ir.load(onnx), self.inputs.teacher.inputs), folder)
            staged = DeviceFile(plan, file.runtime)
            _, taken_there = self._run(staged, split, f"{made.name}: validation in stages", batch=1)
            decisions = {"torch": decided(made.artifact.model, split), "file": taken, "stages": taken_there}
            record["disagreeing"] = verify.same_decisions(made.name, decisions, floating)
            files = {path.name: partial(shutil.copyfile, path) for path in self.runtime.files(staged)}
            files[HOST] = partial(shutil.copyfile, plan.with_name(HOST))
            return self.steps.store.write(name, parts, record, {**_writers(outputs, taken), **files})

    def torch_seconds(self, made: Made) -> float:
        """About how long the torch model takes over the validation split, from the first samples of it."""
        whole = self.inputs.data.validation
        few = whole[: min(GLANCE, len(whole))]
        predict(made.artifact.model, few[:1])  # the first call takes longer
        began = time.perf_counter()
        predict(made.artifact.model, few)
        return (time.perf_counter() - began) * len(whole) / len(few)

    def test(self, name: str, file: DeviceFile) -> tuple[Array, Array | None]:
        """A file's outputs and exits on the test split: for the student that won and what it is compared with."""
        what, parts = f"{name}: test", self._parts(file, "test")
        entry = self.steps.store.find(f"{name}+test", key_of(parts))
        if entry is None:
            outputs, taken = self._run(file, self.inputs.data.test, what)
            entry = self.steps.store.write(f"{name}+test", parts, {}, _writers(outputs, taken))
        return loaded(entry)

    def _run(self, file: DeviceFile, split: Split, what: str, batch: int | None = None) -> tuple[Array, Array | None]:
        """Args: batch: in place of the target's own."""

        def report(done: int) -> None:
            self.steps.emit(Progress(what, done, len(split), "samples"))

        device = self.inputs.device
        return run_over(engines(file, device, len(split)), split, batch or device.batch, report)

    def _parts(self, file: DeviceFile, split: str) -> Parts:
        return {
            "file": sha256_of_parts(file, self.runtime),
            "split": split,
            "batch": self.inputs.device.batch,
            "data": self.inputs.data.fingerprint,
            "task": self.inputs.task.name,
            "device": self.inputs.device.model_dump(mode="json"),
            "runtime": versions((self.inputs.device.runtime,)),
            "source": digests(type(self.runtime).__module__) | digests(type(self.inputs.task).__module__),
        }


def engines(file: DeviceFile, device: Device, samples: int) -> list[Engine]:
    """The loaded file, as often as it may run in threads of this process at once: what it answers is no matter of time.

    Args: samples: how many it will be run over; a second engine is not loaded for a few.
    Raises: TargetError as `Runtime.load`.
    """
    runtime = runtime_of(device)
    count = 1
    if isinstance(runtime, SideBySide) and runtime.side_by_side(device):
        count = max(1, min(allowed_cores() // device.threads, ENGINES_MOST, samples // REPORTED))
    return [runtime.load(file, device) for _ in range(count)]


def run_over(
    engines: Sequence[Engine],
    split: Split,
    batch: int,
    report: Callable[[int], None] = lambda done: None,
) -> tuple[Array, Array | None]:
    """A loaded file's outputs over a split, [n, ...], and the exits taken, [n], where it tells them.

    Args: engines: the same file loaded once or more; several share the samples, each in a thread of its own. batch: samples
        at a time, as the target runs them; a file whose batch size is fixed is run in such batches. The last batch is
        filled up with the first samples, whose second outputs are left out: no sample is in a smaller one. report: is
        told how many samples are done.
    """
    fixed = engines[0].inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else batch
    part = size * math.ceil(REPORTED / size)
    free: SimpleQueue[Engine] = SimpleQueue()
    for engine in engines:
        free.put(engine)

    def run(start: int) -> list[list[Array]]:
        engine = free.get()
        try:
            return [_batch(engine, split, begin, size) for begin in range(start, min(start + part, len(split)), size)]
        finally:
            free.put(engine)

    found: list[list[Array]] = []

    def collect(parts: Iterable[list[list[Array]]]) -> None:
        for number, batches in enumerate(parts, start=1):
            found.extend(batches)
            report(min(number * part, len(split)))

    starts = range(0, len(split), part)
    if len(engines) == 1:  # in the thread that loaded it, to which some runtimes are bound
        collect(map(run, starts))
    else:
        with ThreadPoolExecutor(len(engines)) as pool:
            try:
                collect(pool.map(run, starts))
            finally:
                pool.shutdown(cancel_futures=True)
    outputs = [np.concatenate(arrays) for arrays in zip(*found, strict=True)]
    return outputs[0], outputs[1] if len(outputs) > 1 else None


def _batch(engine: Engine, split: Split, start: int, size: int) -> list[Array]:
    """What one batch gives, without the samples that only fill it up."""
    part = split[torch.arange(start, start + size) % len(split)]
    return [array[: len(split) - start] for array in engine.run([tensor.numpy() for tensor in part.inputs])[:2]]


@torch.no_grad()
def decided(cascade: Cascade, split: Split) -> Array:
    """At which exit each sample of a split leaves the torch model, [n]."""
    parts = [cascade.route(*batch.inputs)[1] for batch in split.batches(EVALUATION_BATCH)]
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
