"""Measuring files on a device: interleaved, in fresh processes, with intervals, and a verdict where they support one.

Two sessions of the very same file in one process differ by one or two percent for as long as the process lives, through
their places in memory. So the process is what is repeated, and the spread between processes is what the intervals are
made of. Within a process every file gets a block of runs in each round, in random order, the first of them discarded:
strict alternation, run by run, would charge a small model for the caches that a large one has emptied.

A file's figure is the median of its runs, unless its work depends on its input (`skips`): then it is the mean over the
inputs, for the median would tell of the most frequent exit alone. `over_inputs` times every input by itself.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
from onnx_ir.passes.common import InlinePass
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.observe import Emit, Progress, silent
from kdc.core.spec import DeviceFile
from kdc.numerics.cost import count
from kdc.numerics.stats import (
    REPEATS,
    Floats,
    Interval,
    log_means,
    mean_over_inputs,
    median_interval,
    paired_log_ratios,
    percentile,
    ratio_interval,
)
from targets.cascade import is_cascade
from targets.machine import Load, environment
from targets.process import Workplace
from targets.runtime import Array, runtime_of
from targets.worker import FileTiming, Job

PROCESSES_LEAST = 3  # with fewer, a t interval is too wide to say anything

BlocksNs = tuple[tuple[tuple[int, ...], ...], ...]
"""[processes][rounds][runs], nanoseconds."""


class Settings(BaseModel, frozen=True, extra="forbid"):
    """How long to measure, and what to look for."""

    seconds: float = Field(default=20, gt=0, description="no new process starts after this, but for the first three")
    precision: float = Field(default=0.01, gt=0, description="enough when a 95% interval's half-width is this share")
    interest: float = Field(default=0.01, ge=0, description="a difference of at most this share is none")
    processes_min: int = Field(default=5, ge=PROCESSES_LEAST, description="fresh processes, time permitting")
    processes_max: int = Field(default=60, ge=PROCESSES_LEAST)
    slice_seconds: float = Field(default=0.25, gt=0, description="of timed rounds for each file in each process")
    rounds_max: int = Field(default=20, ge=3, description="in each process")


class Latency(BaseModel, frozen=True, extra="forbid"):
    """How long one run takes. The interval is of the median; p90 and p99 only where the samples support them.

    The means are of files whose work depends on their input, None for others: over the inputs, each by the median of its
    runs in a block, then the geometric mean over processes with its t interval.
    """

    n: int = Field(description="timed runs")
    processes: int
    median_ms: float
    low_ms: float
    high_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float | None = None
    mean_low_ms: float | None = None
    mean_high_ms: float | None = None
    load_ms: float = Field(description="making the session, the runtime being there; median over processes")
    first_ms: float = Field(description="the first run of a new session; median over processes")


class Ratio(BaseModel, frozen=True, extra="forbid"):
    """Baseline over candidate: above 1 the candidate is faster.

    A verdict other than "no detectable difference" needs the whole interval beyond the difference of interest.
    """

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "no detectable difference"]


class Profile(BaseModel, frozen=True, extra="forbid"):
    """One file: what it is and what it costs.

    1 MB is 10^6 bytes. `peak_memory_mb` is over what the bare runtime takes; `macs` are of one sample.
    """

    path: Path
    sha256: str
    size_mb: float
    latency: Latency
    peak_memory_mb: float
    parameters: int
    macs: int


class Comparison(BaseModel, frozen=True, extra="forbid"):
    """A candidate, beside a baseline where one was given; samples_ns is [file][process][round][run]."""

    candidate: Profile
    baseline: Profile | None
    ratio: Ratio | None
    reached: Literal["precision", "time"]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False, description="the candidate, then the baseline")


class Measured(BaseModel, frozen=True, extra="forbid"):
    """A baseline and candidates that were timed in the same rounds; samples_ns has the baseline first.

    skips: for each file, the baseline first, whether its work depends on its input, so that its mean over the inputs is
    what is compared; empty where none's does.
    """

    baseline: Profile
    candidates: tuple[Profile, ...]
    interest: float
    reached: Literal["precision", "time"]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False)
    skips: tuple[bool, ...] = ()

    def ratio(self, index: int) -> Ratio:
        """The baseline over a candidate: above 1 the candidate is faster."""
        return self._judge(0, 1 + index)

    def ratio_between(self, reference: int, candidate: int) -> Ratio:
        """One candidate over another: above 1 the second is faster."""
        return self._judge(1 + reference, 1 + candidate)

    def _judge(self, first: int, second: int) -> Ratio:
        means = (self.skips[first], self.skips[second]) if self.skips else (False, False)
        return judge(self.samples_ns[first], self.samples_ns[second], self.interest, means)

    def samples_ms(self, index: int) -> list[float]:
        """All timed runs of a candidate, in the order they were run."""
        return [ns / 1e6 for process in self.samples_ns[1 + index] for block in process for ns in block]

    def comparison(self, index: int) -> Comparison:
        """A candidate beside the baseline."""
        return Comparison(
            candidate=self.candidates[index],
            baseline=self.baseline,
            ratio=self.ratio(index),
            reached=self.reached,
            environment=self.environment,
            notes=self.notes,
            samples_ns=(self.samples_ns[1 + index], self.samples_ns[0]),
        )


class InputTimes(BaseModel, frozen=True, extra="forbid"):
    """What every input takes at batch 1; `ms` is [file][process][input], each the median of the input's runs there."""

    paths: tuple[Path, ...]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    ms: tuple[tuple[tuple[float, ...], ...], ...] = Field(repr=False)

    def of(self, file: int) -> Floats:
        """Each input's time in milliseconds, the median over processes: [n]."""
        return np.median(np.asarray(self.ms[file]), axis=0)  # type: ignore[no-any-return]

    def mean_ms(self, file: int) -> float:
        """The mean over the inputs: what a stream of such inputs takes, by their number."""
        return float(self.of(file).mean())

    def median_ms(self, file: int) -> float:
        """The median over the inputs."""
        return float(np.median(self.of(file)))

    def p95_ms(self, file: int) -> float | None:
        """What 95% of the inputs stay below; None with fewer than 200 inputs, which do not support it."""
        return percentile(self.of(file), 0.95)

    def ratio(
        self,
        numerator: int,
        denominator: int,
        numerator_inputs: Array | None = None,
        denominator_inputs: Array | None = None,
    ) -> Interval:
        """The ratio of two files' mean times, with its t interval over processes.

        Args: numerator, denominator: places in `paths`, which may be the same. numerator_inputs, denominator_inputs:
        the inputs that count for each, bool [n]; all where None.

        Raises: TargetError where a mask does not fit the inputs, or chooses none.
        """
        means = (self._means(numerator, numerator_inputs), self._means(denominator, denominator_inputs))
        return ratio_interval(np.log(means[0]) - np.log(means[1]))

    def _means(self, file: int, chosen: Array | None) -> Floats:
        """Each process's mean over the chosen inputs."""
        ms = np.asarray(self.ms[file])
        mask = np.ones(ms.shape[1], np.bool_) if chosen is None else np.asarray(chosen)
        if mask.dtype != np.bool_ or mask.shape != ms.shape[1:] or not mask.any():
            raise TargetError(
                f"the inputs are chosen by {mask.dtype} {list(mask.shape)}, of which {np.count_nonzero(mask)} are not 0",
                do=f"give bool [{ms.shape[1]}] with at least one True",
            )
        return ms[:, mask].mean(axis=1)  # type: ignore[no-any-return]


def skips(paths: Sequence[Path]) -> bool:
    """Whether a file's work depends on its input's values: it is a cascade, or branches on what it computes.

    True for an `If` or a `Loop`, in any of the file's graphs, whose condition or number of rounds follows from an
    input's values. One that follows from constants or from shapes alone takes the same way for every input.

    Args: paths: what `Runtime.files` gives.
    """
    return is_cascade(paths[0]) or any(_branches(onnx_ir.load(path)) for path in _onnx_files(paths))


def _onnx_files(paths: Sequence[Path]) -> list[Path]:
    """The graphs among a file's parts: the others are weights."""
    return [path for path in paths if path.suffix == ".onnx"] if is_cascade(paths[0]) else [paths[0]]


def _branches(model: onnx_ir.Model) -> bool:
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
    # A body's number of the round and its condition follow from what decides about the Loop, which is looked at itself.
    counters = [
        value for node in nodes if node.op_type == "Loop" for value in node.attributes["body"].as_graph().inputs[:2]
    ]
    deciding = [value for node in nodes if node.op_type in ("If", "Loop") for value in _deciding(node)]
    return _follow_from_inputs(deciding, set(counters))


def _deciding(node: onnx_ir.Node) -> list[onnx_ir.Value | None]:
    """The condition of an If; a Loop's number of rounds, its first condition, and the one that its body gives."""
    if node.op_type == "If":
        return [node.inputs[0]]
    return [*node.inputs[:2], node.attributes["body"].as_graph().outputs[0]]


def _follow_from_inputs(values: Sequence[onnx_ir.Value | None], passed_over: set[onnx_ir.Value]) -> bool:
    """Whether any of the values is computed from an input's values."""
    seen, waiting = set(passed_over), list(values)
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if value.is_graph_input() and not value.is_initializer():
                return True
        elif node.op_type not in ("Shape", "Size"):
            waiting.extend(node.inputs)
            for attribute in node.attributes.values():
                if attribute.type == onnx_ir.AttributeType.GRAPH:
                    waiting.extend(attribute.as_graph().outputs)
    return False


def judge(
    baseline_ns: BlocksNs, candidate_ns: BlocksNs, interest: float, means: tuple[bool, bool] = (False, False)
) -> Ratio:
    """The ratio of two files that were timed in the same rounds, and what can be said of it.

    "faster" or "slower" take an interval that lies beyond 1 + interest, or 1 / (1 + interest), as a whole.

    Args: means: whether the baseline's and the candidate's work depends on their inputs, so that their means are compared.
    """
    interval = ratio_interval(paired_log_ratios(baseline_ns, candidate_ns, means=means))
    verdict: Literal["faster", "slower", "no detectable difference"] = "no detectable difference"
    if interval.low > 1 + interest:
        verdict = "faster"
    elif interval.high < 1 / (1 + interest):
        verdict = "slower"
    return Ratio(ratio=interval.value, low=interval.low, high=interval.high, verdict=verdict)


def compare(
    candidate: DeviceFile,
    baseline: DeviceFile | None,
    device: Device,
    inputs: Sequence[Array] | None = None,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    emit: Emit = silent,
) -> Comparison:
    """Measure one file, alone or interleaved with a baseline.

    Args: inputs: real samples, one array [n, ...] for each of the models' inputs, in call order; random numbers where
    None. seed: of the order of blocks, and of the intervals' draws.

    Raises: TargetError where a file cannot be loaded or run, or a process died; ModelError where its
    multiply-accumulates cannot be counted.
    """
    if baseline is not None:
        return measure([candidate], baseline, device, inputs, settings, seed=seed, emit=emit).comparison(0)
    alone = measure([], candidate, device, inputs, settings, seed=seed, emit=emit)
    return Comparison(
        candidate=alone.baseline,
        baseline=None,
        ratio=None,
        reached=alone.reached,
        environment=alone.environment,
        notes=alone.notes,
        samples_ns=alone.samples_ns,
    )


def measure(
    candidates: Sequence[DeviceFile],
    baseline: DeviceFile,
    device: Device,
    inputs: Sequence[Array] | None = None,
    settings: Settings | None = None,
    *,
    seed: int = 0,
    emit: Emit = silent,
) -> Measured:
    """Measure several candidates and one baseline, all in the same rounds of the same processes.

    Processes are started until every candidate's ratio is known to `settings.precision` (or, without a candidate, the
    baseline's median), or `settings.seconds` are over; `reached` says which.

    Args and errors: as for `compare`.
    """
    settings = settings or Settings()
    files = [baseline, *candidates]
    runtime = runtime_of(device)
    parts = [runtime.files(file) for file in files]
    costs = [_cost(paths) for paths in parts]
    mixed = _which_skip(parts)
    described = environment({device.runtime: runtime.version(), "numpy": np.__version__})
    load = Load()
    found: list[tuple[FileTiming, ...]] = []
    used: set[tuple[int, ...] | None] = set()
    reached: Literal["precision", "time"] = "time"
    with Workplace(inputs) as place:
        memory = _memory(files, [cost[0] for cost in costs], device, place, seed)
        start = time.monotonic()
        while len(found) < settings.processes_max:
            cores = load.quietest(device.threads)
            job = _job(files, device, place, (seed, len(found)), cores).model_copy(
                update={
                    "slice_seconds": settings.slice_seconds * len(files),
                    "rounds_max": settings.rounds_max,
                    "skips": mixed,
                }
            )
            done = place.run(job)
            found.append(done.timings)
            used.add(cores if done.pinned else None)
            spent = time.monotonic() - start
            emit(Progress("measuring", min(round(spent), round(settings.seconds)), round(settings.seconds), "s"))
            if len(found) >= settings.processes_min and _precise(found, settings.precision, mixed):
                reached = "precision"
                break
            if spent >= settings.seconds and len(found) >= PROCESSES_LEAST:
                break
    samples = tuple(tuple(process[index].blocks_ns for process in found) for index in range(len(files)))
    generator = np.random.default_rng((seed, len(found)))
    profiles = [
        Profile(
            path=file.path,
            sha256=sha256,
            size_mb=size / 1e6,
            latency=_latency([process[index] for process in found], generator, mixed[index]),
            peak_memory_mb=memory[sha256] / 1e6,
            parameters=parameters,
            macs=macs,
        )
        for index, (file, (sha256, size, parameters, macs)) in enumerate(zip(files, costs, strict=True))
    ]
    pinned = sorted({core for cores in used if cores is not None for core in cores})
    return Measured(
        baseline=profiles[0],
        candidates=tuple(profiles[1:]),
        interest=settings.interest,
        reached=reached,
        environment={**described, "pinned_to": pinned, "processes": len(found)},
        notes=(*load.notes(), *_notes(found), *([_NO_INPUTS] if any(mixed) and inputs is None else [])),
        samples_ns=samples,
        skips=mixed,
    )


def over_inputs(
    files: Sequence[DeviceFile],
    device: Device,
    inputs: Sequence[Array],
    *,
    processes: int = 5,
    repeats: int = REPEATS,
    seed: int = 0,
    emit: Emit = silent,
) -> InputTimes:
    """Time every input at batch 1 with every file, in fresh processes: which inputs are dear, and how dear.

    In each process the files take turns on blocks of consecutive inputs, in random order; a block is run `repeats` times
    over, after a few runs that are discarded. The time grows with inputs * files * processes * repeats: give a part of
    the inputs where they are thousands.

    Args: inputs: one array [n, ...] for each of the models' inputs, in call order. processes: >= 2. repeats: >= 1. seed:
    of the order.

    Raises: TargetError where the inputs are none, of unequal number or do not fit, a file takes a batch other than 1,
    cannot be loaded or run, or a process died; ValueError where there is no file, or too few processes or repeats.
    """
    if not files or processes < 2 or repeats < 1:
        raise ValueError(f"{len(files)} files, {processes} processes and {repeats} repeats give no interval")
    counts = [len(array) for array in inputs]
    if not counts or min(counts) == 0 or len(set(counts)) > 1:
        raise TargetError(
            f"the models' inputs have {counts} samples", do="give the same number of samples for each, at least one"
        )
    runtime = runtime_of(device)
    described = environment({device.runtime: runtime.version(), "numpy": np.__version__})
    load = Load()
    found: list[tuple[tuple[int, ...], ...]] = []
    with Workplace(inputs) as place:
        for index in range(processes):
            job = _job(files, device, place, (seed, index), load.quietest(device.threads))
            found.append(place.run(job.model_copy(update={"mode": "inputs", "repeats": repeats})).inputs_ns)
            emit(Progress("timing each input", index + 1, processes, "process"))
    return InputTimes(
        paths=tuple(file.path for file in files),
        environment={**described, "processes": processes},
        notes=tuple(load.notes()),
        ms=tuple(tuple(tuple(ns / 1e6 for ns in process[index]) for process in found) for index in range(len(files))),
    )


def quick_latencies(
    files: Sequence[DeviceFile], device: Device, inputs: Sequence[Array] | None = None, seconds: float = 1.0
) -> list[float]:
    """Medians in milliseconds from one fresh process, its blocks interleaved: good enough to rank, not to judge.

    Of a file whose work depends on its input, the mean over the inputs.

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(inputs) as place:
        cores = Load().quietest(device.threads)
        runtime = runtime_of(device)
        mixed = _which_skip([runtime.files(file) for file in files])
        update = {"slice_seconds": seconds * len(files), "skips": mixed}
        timings = place.run(_job(files, device, place, (0, 0), cores).model_copy(update=update)).timings
    return [
        float(
            np.mean([mean_over_inputs(block) for block in timing.blocks_ns])
            if mean
            else np.median([np.median(block) for block in timing.blocks_ns])
        )
        / 1e6
        for timing, mean in zip(timings, mixed, strict=True)
    ]


def peak_memories(files: Sequence[DeviceFile], device: Device, inputs: Sequence[Array] | None = None) -> list[float]:
    """The most memory that each file takes, in MB over what the bare runtime takes; each in a process of its own.

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(inputs) as place:
        names = [str(file.path) for file in files]
        found = _memory(files, names, device, place, 0)
    return [found[name] / 1e6 for name in names]


_NO_INPUTS = "the work depends on the input, and no real ones were given: on these the means may be others (--samples)"


def _which_skip(parts: Sequence[Sequence[Path]]) -> tuple[bool, ...]:
    return tuple(skips(paths) for paths in parts)


def _job(
    files: Sequence[DeviceFile], device: Device, place: Workplace, seed: tuple[int, ...], cores: tuple[int, ...] | None
) -> Job:
    subjects = tuple(DeviceFile(file.path.resolve(), file.runtime) for file in files)
    return Job(device=device, files=subjects, inputs=place.inputs, seed=seed, cores=cores)


def _cost(paths: Sequence[Path]) -> tuple[str, int, int, int]:
    """SHA-256 and bytes of all that is loaded, parameters, multiply-accumulates."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(path.read_bytes())
    counts = [count(onnx_ir.load(path)) for path in _onnx_files(paths)]
    parameters, macs = (sum(each) for each in zip(*counts, strict=True))
    return sha.hexdigest(), sum(path.stat().st_size for path in paths), parameters, macs


def _memory(
    files: Sequence[DeviceFile], hashes: Sequence[str], device: Device, place: Workplace, seed: int
) -> dict[str, int]:
    """Peak bytes by the file's hash: each in a process of its own, for memory that one has freed another may use."""
    peaks: dict[str, int] = {}
    for file, sha256 in zip(files, hashes, strict=True):
        if sha256 not in peaks:
            job = _job([file], device, place, (seed,), None).model_copy(update={"mode": "memory"})
            peaks[sha256] = place.run(job).peak_bytes
    return peaks


def _precise(found: Sequence[tuple[FileTiming, ...]], precision: float, mixed: Sequence[bool]) -> bool:
    """Whether each ratio's interval (of one file alone, its time's) is at most `precision` to either side."""
    blocks = [[process[index].blocks_ns for process in found] for index in range(len(found[0]))]
    logs: list[Floats]
    if len(blocks) == 1 and mixed[0]:
        logs = [log_means(blocks[0])]
    elif len(blocks) == 1:
        logs = [np.log([np.median([np.median(block) for block in process]) for process in blocks[0]])]
    else:
        logs = [
            paired_log_ratios(blocks[0], candidate, means=(mixed[0], means))
            for candidate, means in zip(blocks[1:], mixed[1:], strict=True)
        ]
    intervals = [ratio_interval(one) for one in logs]
    return all(math.log(interval.high / interval.low) / 2 <= math.log1p(precision) for interval in intervals)


def _latency(timings: Sequence[FileTiming], generator: np.random.Generator, mixed: bool) -> Latency:
    clusters = [timing.blocks_ns for timing in timings]
    samples = np.array([ns for process in clusters for block in process for ns in block]) / 1e6
    median = median_interval(clusters, generator)
    mean = ratio_interval(log_means(clusters)) if mixed else None
    return Latency(
        n=samples.size,
        processes=len(timings),
        median_ms=median.value / 1e6,
        low_ms=median.low / 1e6,
        high_ms=median.high / 1e6,
        p90_ms=percentile(samples, 0.9),
        p99_ms=percentile(samples, 0.99),
        mean_ms=mean and mean.value / 1e6,
        mean_low_ms=mean and mean.low / 1e6,
        mean_high_ms=mean and mean.high / 1e6,
        load_ms=float(np.median([timing.load_ns for timing in timings])) / 1e6,
        first_ms=float(np.median([timing.first_ns for timing in timings])) / 1e6,
    )


def _notes(found: Sequence[tuple[FileTiming, ...]]) -> list[str]:
    unsteady = sum(not timing.steady for process in found for timing in process)
    of = sum(len(process) for process in found)
    # a quarter: on a busy machine a few warm-ups end before their noise lets them be called steady
    return [f"{unsteady} of {of} warm-ups were not steady when their time was over"] if unsteady > of / 4 else []
