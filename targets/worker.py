"""One measuring process: loads the files, warms them up, times them in blocks, and writes down every sample.

Started by `targets.fresh` as `python -m targets.worker JOB RESULT`, so that every measurement begins in a process that
has nothing else in it: numpy and the runtime, no torch. A remote device runs this very file (`targets.remote`), and has
no more than Python, numpy and the runtime: nothing else may be imported here.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.numerics.stats import REPEATS, is_steady
from targets.job import Done, FileTiming, Job, device_of, packed
from targets.machine import peak_bytes, pin, reset_peak
from targets.proc import mapped_bytes, resident_bytes
from targets.runtime import Array, Places, feeds, runtime_of
from targets.samples import read_samples
from targets.stream_work import stream
from targets.sweep import Sweep
from targets.tied import end_with_parent

WINDOW_NS = 5_000_000  # one window of the warm-up
WARM_UP_NS = 500_000_000  # the most spent on one model's warm-up
DISCARDED_NS = 10_000_000  # at a block's start: the caches get the model back from its predecessor
BLOCK_NS = 20_000_000  # the rest of the block, timed
DISCARDED_RUNS = (1, 20)
BLOCK_RUNS = (3, 40)
ROUNDS_MIN = 3
# Of a file whose work depends on its input: longer, for a block must hold a fair mix of inputs, each `REPEATS` times.
MIXED_BLOCK_NS = 200_000_000
MIXED_INPUTS = (3, 40)
BATCHES = 256  # that are run in turn
MIXED_BYTES = 256_000_000  # of all files' batches together, where the work depends on them
CHUNK = 50  # consecutive inputs of one file, where every input is timed

COLD_RUNS = 5  # in a block, each after a sweep of the caches, which takes longer than most models
COLD_INPUTS = 8  # the same where the work depends on the input, each `REPEATS` times

Batches = list[list[Array]]


class _Subject:
    """A loaded file with its batches and how many runs make a block."""

    def __init__(self, job: Job, file: DeviceFile, samples: list[Array] | None, limit: int = BATCHES) -> None:
        device = device_of(job.device)
        runtime = runtime_of(device)
        start = time.perf_counter_ns()
        engine = runtime.load(file, device)
        self.load_ns = time.perf_counter_ns() - start
        self.run: Callable[[Sequence[Array]], object] = engine.run
        self.batches: Batches = feeds(engine, samples, device.batch, np.random.default_rng(job.seed), limit)
        self.first_ns = self.block(0, 0, 1)[0]
        self.warm_up_runs = 0
        self.steady = False
        self.discarded = self.timed = self.repeats = 1
        self.blocks_ns: list[tuple[int, ...]] = []

    def block(
        self, position: int, discarded: int, timed: int, repeats: int = 1, before: Callable[[], None] | None = None
    ) -> tuple[int, ...]:
        """Nanoseconds of `timed` runs, after `discarded` that are not timed; `repeats` times over.

        They are back to back, or `before` is called before each.
        """
        run, batches, clock = self.run, self.batches, time.perf_counter_ns
        of = len(batches)
        for k in range(discarded):
            run(batches[(position + k) % of])
        spent = [0] * (repeats * timed)
        for k in range(repeats * timed):
            batch = batches[(position + k % timed) % of]
            if before is not None:
                before()
            start = clock()
            run(batch)
            spent[k] = clock() - start
        return tuple(spent)

    def warm_up(self, *, mixed: bool = False) -> None:
        """Run until the time has stopped falling, or `WARM_UP_NS` is over; then fix the block's length.

        mixed: the work of one of the files depends on its input, so that means over inputs are what is compared.
        """
        windows: list[float] = []
        runs = _clipped(WINDOW_NS, self.first_ns, (1, 10))
        start = time.perf_counter_ns()
        while not self.steady and time.perf_counter_ns() - start < WARM_UP_NS:
            windows.append(median(self.block(self.warm_up_runs, 0, runs)))
            self.warm_up_runs += runs
            self.steady = is_steady(windows)
        typical = median(windows[-3:])
        self.discarded = _clipped(DISCARDED_NS, typical, DISCARDED_RUNS)
        self.timed = _clipped(BLOCK_NS, typical, BLOCK_RUNS)
        if mixed:
            self.repeats = REPEATS
            self.timed = _clipped(MIXED_BLOCK_NS / REPEATS, typical, MIXED_INPUTS)

    def timing(self) -> FileTiming:
        """All that was found."""
        return FileTiming(
            load_ns=self.load_ns,
            first_ns=self.first_ns,
            warm_up_runs=self.warm_up_runs,
            steady=self.steady,
            blocks_ns=tuple(self.blocks_ns),
        )


def _clipped(budget_ns: float, run_ns: float, runs: tuple[int, int]) -> int:
    return min(max(math.ceil(budget_ns / run_ns), runs[0]), runs[1])


def _time(job: Job, samples: list[Array] | None) -> Done:
    generator = np.random.default_rng(job.seed)
    skips = job.skips or (False,) * len(job.files)
    subjects = _loaded(job, samples, generator, _limit(job, samples) if any(skips) else BATCHES)
    for subject in subjects:
        subject.warm_up(mixed=any(skips))
    mixed_subjects = [subject for subject, mixed in zip(subjects, skips, strict=True) if mixed]
    step = min((subject.timed for subject in mixed_subjects), default=0)
    for subject in mixed_subjects:
        subject.timed = step  # two such files are compared on the same inputs
    first = int(generator.integers(2**16)) if mixed_subjects else 0
    start = time.monotonic()
    for done in range(job.rounds_max):
        if done >= ROUNDS_MIN and time.monotonic() - start >= job.slice_seconds:
            break
        # The same samples for every file of a round. Where the work depends on them a round goes on where the last one
        # ended: inputs drawn twice while others wait would make a process's mean vary more than it must.
        position = first + done * step if mixed_subjects else int(generator.integers(2**16))
        for index in generator.permutation(len(subjects)):
            subject = subjects[index]
            subject.blocks_ns.append(subject.block(position, subject.discarded, subject.timed, subject.repeats))
    return Done(timings=tuple(subject.timing() for subject in subjects))


def _cold(job: Job, samples: list[Array] | None) -> Done:
    """Rounds of runs that each find the caches swept.

    There is nothing to warm up to but what a session does once: a few runs are discarded. Files do not wait for each
    other's caches, so a block is there only to stand beside the others of its round.
    """
    generator = np.random.default_rng(job.seed)
    skips = any(job.skips)
    subjects = _loaded(job, samples, generator, _limit(job, samples) if skips else BATCHES)
    timed, repeats, rounds_min = (COLD_INPUTS, REPEATS, 1) if skips else (COLD_RUNS, 1, ROUNDS_MIN)
    sweep = Sweep(job.cores)
    for subject in subjects:
        subject.warm_up_runs = _clipped(DISCARDED_NS, subject.first_ns, DISCARDED_RUNS)
        subject.block(0, subject.warm_up_runs, 0)
        subject.steady = True
    first, start = int(generator.integers(2**16)), time.monotonic()
    for done in range(job.rounds_max):
        if done >= rounds_min and time.monotonic() - start >= job.slice_seconds:
            break
        for index in generator.permutation(len(subjects)):
            subject = subjects[index]
            subject.blocks_ns.append(subject.block(first + done * timed, 0, timed, repeats, sweep))
    return Done(timings=tuple(subject.timing() for subject in subjects), swept_bytes=sweep.buffers[0].nbytes)


def _loaded(job: Job, samples: list[Array] | None, generator: np.random.Generator, limit: int) -> list[_Subject]:
    """All files, in the job's order; nothing is collected from here on."""
    runtime_of(device_of(job.device)).prepare()
    loaded: dict[int, _Subject] = {}
    # A session's place in memory decides a percent or two of its time: which one comes first is left to chance.
    for index in generator.permutation(len(job.files)):
        loaded[int(index)] = _Subject(job, job.files[index], samples, limit)
    gc.collect()
    gc.freeze()
    gc.disable()
    return [loaded[index] for index in range(len(job.files))]


def _limit(job: Job, samples: list[Array] | None) -> int:
    """As many batches as `MIXED_BYTES` hold for all files, but never fewer than other files get."""
    if samples is None:
        return BATCHES
    batch_bytes = (
        sum(array.nbytes // max(1, len(np.atleast_1d(array))) for array in samples) * device_of(job.device).batch
    )
    return max(BATCHES, MIXED_BYTES // max(1, batch_bytes * len(job.files)))


def _inputs(job: Job, samples: list[Array] | None) -> Done:
    """The time of every input alone, for every file."""
    generator = np.random.default_rng(job.seed)
    count = 0 if samples is None else len(samples[0])
    alone = replace(job, device={**job.device, "batch": 1})
    subjects = _loaded(alone, samples, generator, count)
    for file, subject in zip(job.files, subjects, strict=True):
        if len(subject.batches) != count:
            raise TargetError(
                f"{file.path}: takes more than one input at a time, and each is to be timed alone",
                do="export it with a free batch, or a batch of 1",
            )
        subject.warm_up()
    spent = np.zeros((len(subjects), count), np.int64)
    for start in generator.permutation(range(0, count, CHUNK)):
        size = min(CHUNK, count - int(start))
        for index in generator.permutation(len(subjects)):
            subject = subjects[index]
            subject.block(int(start) + size, 0, subject.discarded)  # the inputs behind these, for the caches only
            # Not an input's repeats in a row: the second would find the work that this input takes in the caches, which
            # an input that comes after others does not.
            runs = np.reshape(subject.block(int(start), 0, size, job.repeats), (job.repeats, size))
            # Not the least: it is no time that a run takes on average, and the longer the work, the rarer a run of it
            # that nothing disturbs. One preempted run of three leaves the median where it was.
            spent[index, start : start + size] = np.median(runs, axis=0)
    return Done(inputs_ns=tuple(tuple(row) for row in spent.tolist()))


def _memory(job: Job, samples: list[Array] | None) -> Done:
    """The most memory that is resident while a file is loaded and run, over what the bare runtime takes; and what of the
    file is mapped, which the system may take back and read again.
    """
    device = device_of(job.device)
    runtime = runtime_of(device)
    runtime.prepare()
    gc.collect()
    reset_peak()
    before = resident_bytes()
    engine = runtime.load(job.files[0], device)
    batches = feeds(engine, samples, device.batch, np.random.default_rng(job.seed), limit=1)
    for _ in range(5):
        engine.run(batches[0])
    return Done(peak_bytes=max(0, peak_bytes() - before), mapped_bytes=mapped_bytes(job.files[0].path.parent))


def _placement(job: Job, samples: list[Array] | None) -> Done:
    """Which provider has which nodes of a file."""
    device = device_of(job.device)
    runtime = runtime_of(device)
    return Done(placed=runtime.placement(job.files[0], device) if isinstance(runtime, Places) else ())


def _answers(job: Job, samples: list[Array] | None) -> Done:
    """What a file gives for each input."""
    device = device_of(job.device)
    engine = runtime_of(device).load(job.files[0], device)
    count = 0 if samples is None else len(samples[0])
    batches = feeds(engine, samples, device.batch, np.random.default_rng(job.seed), limit=count)
    answered = sum(len(batch[0]) for batch in batches) if samples else 0
    if answered != count or not count:
        raise TargetError(
            f"{job.files[0].path}: takes {len(batches[0][0])} inputs at a time, and there are {count}",
            do="give whole batches",
        )
    outputs = zip(*(engine.run(batch) for batch in batches), strict=True)
    return Done(answers=tuple(packed(np.concatenate(output)) for output in outputs))


_MODES = {
    "time": _time,
    "cold": _cold,
    "memory": _memory,
    "placement": _placement,
    "inputs": _inputs,
    "answers": _answers,
    "stream": stream,
}


def main(job_path: str, result_path: str) -> None:
    """Do the job of one file, and write what was found into another."""
    end_with_parent()
    job = Job.from_json(Path(job_path).read_text())
    pinned = pin(job.cores)
    job = replace(job, cores=job.cores if pinned else None)
    try:
        done = _MODES[job.mode](job, read_samples(job.inputs))
    except TargetError as error:
        done = Done(error=str(error))
    Path(result_path).write_text(replace(done, pinned=pinned).as_json())
    sys.stdout.flush()
    # The runtime's own threads are not waited for: all that mattered is written.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
