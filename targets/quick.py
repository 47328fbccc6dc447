"""Short looks at files, one process each: their order by time, and the memory that they take. They judge nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kdc.core.device import Device
from kdc.core.spec import DeviceFile
from kdc.numerics.stats import mean_over_inputs
from targets.job import LIMIT_SECONDS, Done
from targets.process import Workplace
from targets.runtime import Array, running
from targets.skips import which_skip

MEMORY_PROCESSES = 5  # fresh ones, of which the largest peak counts: one alone reads some percent less or more


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
        mixed = which_skip(files, running(device))
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
    """The memory that each file takes, in MB over what the bare runtime takes; each in one process: a quick look.

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(inputs, device) as place:
        names = [str(file.path) for file in files]
        found = memory_of(files, names, device, place, processes=1)
    return [found[name].peak_bytes / 1e6 for name in names]


def memory_of(
    files: Sequence[DeviceFile],
    hashes: Sequence[str],
    device: Device,
    place: Workplace,
    limit_seconds: float = LIMIT_SECONDS,
    *,
    processes: int = MEMORY_PROCESSES,
) -> dict[str, Done]:
    """The largest peak, and the mapped bytes beside it, by the file's hash.

    Each run is a process of its own, for memory that one file has freed another may use.
    """
    distinct = dict(zip(hashes, files, strict=True))
    jobs = [
        replace(place.job([file], device, (0,)), mode="memory", limit_seconds=limit_seconds)
        for file in distinct.values()
        for _ in range(processes)
    ]
    done = iter(place.run_all(jobs))
    return {sha256: max((next(done) for _ in range(processes)), key=lambda one: one.peak_bytes) for sha256 in distinct}
