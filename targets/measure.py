"""Measuring files on a device: interleaved, in fresh processes, with intervals, and a verdict where they support one.

Two sessions of the very same file in one process differ by one or two percent for as long as the process lives, through
their places in memory. So the process is what is repeated, and the spread between processes is what the intervals are
made of. Within a process every file gets a block of runs in each round, in random order, the first of them discarded:
strict alternation, run by run, would charge a small model for the caches that a large one has emptied.

Two regimes, in processes of their own and never mixed: hot, back to back with the caches warm, and cold, every run after
the caches were swept (`targets.sweep`). Each has its own figures, ratios and samples; what is not called cold is hot.

A file's figure is the median of its runs, unless its work depends on its input (`skips`): then it is the mean over the
inputs, for the median would tell of the most frequent exit alone; and so is that of a file which it is compared with.
`targets.over_inputs` times every input by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.observe import Emit, Progress, silent
from kdc.core.spec import DeviceFile
from kdc.numerics.cost import count
from kdc.numerics.stats import (
    Floats,
    log_means,
    mean_over_inputs,
    median_interval,
    paired_log_ratios,
    percentile,
    ratio_interval,
)
from targets.job import LIMIT_SECONDS, FileTiming
from targets.parts import described_by, sha256_of_parts
from targets.process import Workplace
from targets.runtime import Array, Runtime, running
from targets.site import Watching
from targets.skips import onnx_files, skips

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
    cold_seconds: float = Field(
        default=0, ge=0, description="the same for cold runs, beside `seconds`; 0: cold runs are not measured"
    )
    timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="a measuring process is killed that takes longer; beside what its rounds may take",
    )


class Latency(BaseModel, frozen=True, extra="forbid"):
    """How long one run takes. The interval is of the median; p90, p99 and p99.9 only where the samples support them.

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
    p999_ms: float | None = None
    mean_ms: float | None = None
    mean_low_ms: float | None = None
    mean_high_ms: float | None = None
    load_ms: float = Field(description="making the session, the runtime being there; median over processes")
    first_ms: float = Field(description="the first run of a new session; median over processes")
    emulated: bool = Field(default=False, description="no time of the device's own processor: it satisfies no budget")

    def figure(self) -> tuple[float, float, float]:
        """What stands for the file, and its interval, ms: the mean where its work depends on its input, or the median."""
        if self.mean_ms is None or self.mean_low_ms is None or self.mean_high_ms is None:
            return self.median_ms, self.low_ms, self.high_ms
        return self.mean_ms, self.mean_low_ms, self.mean_high_ms


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
    cold: Latency | None = Field(default=None, description="of runs that each found the caches swept, where measured")
    peak_memory_mb: float
    parameters: int | None = Field(description="None where the graph is unknown: a file of the runtime's own format")
    macs: int | None


class Cold(BaseModel, frozen=True, extra="forbid"):
    """The cold runs of files that were timed in the same rounds; samples_ns has the files in their measurement's order."""

    reached: Literal["precision", "time"]
    processes: int
    swept_mb: float = Field(description="read and written before every run, for each core")
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False)


class Comparison(BaseModel, frozen=True, extra="forbid"):
    """A candidate, beside a baseline where one was given; samples_ns is [file][process][round][run]."""

    candidate: Profile
    baseline: Profile | None
    ratio: Ratio | None
    reached: Literal["precision", "time"]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False, description="the candidate, then the baseline")
    cold_ratio: Ratio | None = None
    cold: Cold | None = Field(default=None, description="the candidate, then the baseline")


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
    cold: Cold | None = None

    def ratio(self, index: int) -> Ratio:
        """The baseline over a candidate: above 1 the candidate is faster."""
        return self._judge(0, 1 + index)

    def ratio_between(self, reference: int, candidate: int) -> Ratio:
        """One candidate over another: above 1 the second is faster."""
        return self._judge(1 + reference, 1 + candidate)

    def cold_ratio(self, index: int) -> Ratio | None:
        """The baseline over a candidate, both cold; None where cold runs were not measured."""
        return None if self.cold is None else self._judge(0, 1 + index, self.cold.samples_ns)

    def _judge(self, first: int, second: int, samples_ns: tuple[BlocksNs, ...] | None = None) -> Ratio:
        means = bool(self.skips) and (self.skips[first] or self.skips[second])
        samples = self.samples_ns if samples_ns is None else samples_ns
        return judge(samples[first], samples[second], self.interest, means)

    def samples_ms(self, index: int) -> list[float]:
        """All timed runs of a candidate, in the order they were run."""
        return _in_order(self.samples_ns[1 + index])

    def cold_samples_ms(self, index: int) -> list[float]:
        """All cold runs of a candidate, in the order they were run; empty where there were none."""
        return [] if self.cold is None else _in_order(self.cold.samples_ns[1 + index])

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
            cold_ratio=self.cold_ratio(index),
            cold=self.cold
            and self.cold.model_copy(update={"samples_ns": (self.cold.samples_ns[1 + index], self.cold.samples_ns[0])}),
        )


def _in_order(blocks_ns: BlocksNs) -> list[float]:
    """Milliseconds of all runs."""
    return [ns / 1e6 for process in blocks_ns for block in process for ns in block]


def judge(baseline_ns: BlocksNs, candidate_ns: BlocksNs, interest: float, means: bool = False) -> Ratio:
    """The ratio of two files that were timed in the same rounds, and what can be said of it.

    "faster" or "slower" take an interval that lies beyond 1 + interest, or 1 / (1 + interest), as a whole.

    Args: means: whether the work of one of the two depends on its input, so that their means are compared.
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
        cold=alone.cold,
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
    runtime = running(device)
    costs = [_cost(file, runtime) for file in files]
    mixed = _which_skip(files, runtime)
    with Workplace(inputs, device) as place:
        watch = place.watch()
        memory = _memory(files, [cost[0] for cost in costs], device, place, settings.timeout_seconds)
        task = _Task(files, device, mixed, settings, seed, emit)
        hot = task.measured(place, watch, "time", settings.seconds)
        cold = task.measured(place, watch, "cold", settings.cold_seconds) if settings.cold_seconds else None
        described, watched = watch.environment(), watch.notes()
    emulated = bool(described.get("emulated"))
    profiles = [
        Profile(
            path=file.path,
            sha256=sha256,
            size_mb=size / 1e6,
            latency=hot.latency(index, emulated),
            cold=cold and cold.latency(index, emulated),
            peak_memory_mb=memory[sha256] / 1e6,
            parameters=parameters,
            macs=macs,
        )
        for index, (file, (sha256, size, parameters, macs)) in enumerate(zip(files, costs, strict=True))
    ]
    return Measured(
        baseline=profiles[0],
        candidates=tuple(profiles[1:]),
        interest=settings.interest,
        reached=hot.reached,
        environment={**described, "pinned_to": hot.pinned, "processes": len(hot.found)},
        notes=(*watched, *_notes(hot.found), *([_NO_INPUTS] if any(mixed) and inputs is None else [])),
        samples_ns=hot.samples_ns(),
        skips=mixed,
        cold=cold
        and Cold(
            reached=cold.reached,
            processes=len(cold.found),
            swept_mb=cold.swept_bytes / 1e6,
            samples_ns=cold.samples_ns(),
        ),
    )


@dataclass(frozen=True)
class _Regime:
    """What the processes of one regime found, [process][file]."""

    found: list[tuple[FileTiming, ...]]
    mixed: Sequence[bool]
    reached: Literal["precision", "time"]
    pinned: list[int]
    seed: tuple[int, ...]
    swept_bytes: int

    def samples_ns(self) -> tuple[BlocksNs, ...]:
        return tuple(tuple(process[index].blocks_ns for process in self.found) for index in range(len(self.mixed)))

    def latency(self, index: int, emulated: bool) -> Latency:
        generator = np.random.default_rng((*self.seed, index))
        found = _latency([process[index] for process in self.found], generator, self.mixed[index])
        return found.model_copy(update={"emulated": emulated})


@dataclass(frozen=True)
class _Task:
    """The same files, to be measured in one regime after the other."""

    files: Sequence[DeviceFile]
    device: Device
    mixed: tuple[bool, ...]
    settings: Settings
    seed: int
    emit: Emit

    def measured(self, place: Workplace, watch: Watching, mode: Literal["time", "cold"], seconds: float) -> _Regime:
        """Start processes until the ratios are known to the wanted precision, or the time is over."""
        settings, found = self.settings, list[tuple[FileTiming, ...]]()
        used: set[tuple[int, ...] | None] = set()
        reached: Literal["precision", "time"] = "time"
        swept_bytes = 0
        start = time.monotonic()
        while len(found) < settings.processes_max:
            cores = watch.quietest(self.device.threads)
            slice_seconds = settings.slice_seconds * len(self.files)
            job = replace(
                place.job(self.files, self.device, (self.seed, len(found)), cores),
                mode=mode,
                slice_seconds=slice_seconds,
                rounds_max=settings.rounds_max,
                skips=self.mixed,
                limit_seconds=settings.timeout_seconds + 2 * slice_seconds,
            )
            done = place.run(job)
            found.append(done.timings)
            used.add(cores if done.pinned else None)
            swept_bytes = done.swept_bytes
            spent = time.monotonic() - start
            what = "measuring" if mode == "time" else "measuring cold"
            self.emit(Progress(what, min(round(spent), round(seconds)), round(seconds), "s"))
            if len(found) >= settings.processes_min and _precise(found, settings.precision, self.mixed):
                reached = "precision"
                break
            if spent >= seconds and len(found) >= PROCESSES_LEAST:
                break
        pinned = sorted({core for cores in used if cores is not None for core in cores})
        return _Regime(found, self.mixed, reached, pinned, (self.seed, len(found)), swept_bytes)


def quick_latencies(
    files: Sequence[DeviceFile],
    device: Device,
    inputs: Sequence[Array] | None = None,
    seconds: float = 1.0,
    *,
    cold: bool = False,
) -> list[float]:
    """Medians in milliseconds from one fresh process, its blocks interleaved: good enough to rank, not to judge.

    Args: seconds: for each file. cold: whether every run is to find the caches swept.

    Where the work of one of them depends on its input, the means over the inputs, of all.

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(inputs, device) as place:
        cores = place.watch().quietest(device.threads)
        mixed = _which_skip(files, running(device))
        job = replace(place.job(files, device, (0, 0), cores), slice_seconds=seconds * len(files), skips=mixed)
        job = replace(job, mode="cold" if cold else "time")
        timings = place.run(job).timings
    return [
        float(
            np.mean([mean_over_inputs(block) for block in timing.blocks_ns])
            if any(mixed)
            else np.median([np.median(block) for block in timing.blocks_ns])
        )
        / 1e6
        for timing in timings
    ]


def peak_memories(files: Sequence[DeviceFile], device: Device, inputs: Sequence[Array] | None = None) -> list[float]:
    """The most memory that each file takes, in MB over what the bare runtime takes; each in a process of its own.

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(inputs, device) as place:
        names = [str(file.path) for file in files]
        found = _memory(files, names, device, place)
    return [found[name] / 1e6 for name in names]


_NO_INPUTS = "the work depends on the input, and no real ones were given: on these the means may be others (--samples)"


def _which_skip(files: Sequence[DeviceFile], runtime: Runtime) -> tuple[bool, ...]:
    described = [described_by(file, runtime) for file in files]
    return tuple(bool(paths) and skips(paths) for paths in described)


def _cost(file: DeviceFile, runtime: Runtime) -> tuple[str, int, int | None, int | None]:
    """SHA-256 and bytes of all that is loaded; parameters and multiply-accumulates, where the graph is known."""
    sha256, size = sha256_of_parts(file, runtime), sum(path.stat().st_size for path in runtime.files(file))
    described = described_by(file, runtime)
    if not described:
        return sha256, size, None, None
    counts = [count(onnx_ir.load(path)) for path in onnx_files(described)]
    parameters, macs = (sum(each) for each in zip(*counts, strict=True))
    return sha256, size, parameters, macs


def _memory(
    files: Sequence[DeviceFile],
    hashes: Sequence[str],
    device: Device,
    place: Workplace,
    limit_seconds: float = LIMIT_SECONDS,
) -> dict[str, int]:
    """Peak bytes by the file's hash: each in a process of its own, for memory that one has freed another may use."""
    peaks: dict[str, int] = {}
    for file, sha256 in zip(files, hashes, strict=True):
        if sha256 not in peaks:
            job = replace(place.job([file], device, (0,)), mode="memory", limit_seconds=limit_seconds)
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
            paired_log_ratios(blocks[0], candidate, means=mixed[0] or skipping)
            for candidate, skipping in zip(blocks[1:], mixed[1:], strict=True)
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
        p999_ms=percentile(samples, 0.999),
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
