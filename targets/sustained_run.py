"""The process that runs one file back to back: `python -m targets.sustained_run JOB RESULT`."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from kdc.core.device import Device
from kdc.core.spec import DeviceFile
from targets.apart import serve
from targets.machine import pin
from targets.runtime import feeds, runtime_of
from targets.samples import read_samples

WARM_UP_RUNS = 3  # no more: how a cool machine begins is a part of what is looked for


class Job(BaseModel, frozen=True):
    """One file, for how long, and the length of a window. `inputs` is an .npz with arrays "0", "1", ..."""

    device: Device
    file: DeviceFile
    inputs: Path | None
    seed: int
    cores: tuple[int, ...] | None
    seconds: float
    window_seconds: float


class Windows(BaseModel, frozen=True):
    """Runs that ended in each window, and when it ended: seconds of the system's monotonic clock."""

    start: float
    ends: tuple[float, ...]
    runs: tuple[int, ...]


def work(text: str) -> str:
    """Load the file, and run it until the time is over; a window ends with the run that crosses its end."""
    job = Job.model_validate_json(text)
    pin(job.cores)
    runtime = runtime_of(job.device)
    runtime.prepare()
    engine = runtime.load(job.file, job.device)
    batches = feeds(engine, read_samples(job.inputs), job.device.batch, np.random.default_rng(job.seed))
    for index in range(WARM_UP_RUNS):
        engine.run(batches[index % len(batches)])
    gc.collect()
    gc.disable()
    clock, of, run = time.monotonic, len(batches), engine.run
    ends, runs = [], []
    start = now = clock()
    while now - start < job.seconds:
        count, end = 0, now + job.window_seconds
        while now < end:
            run(batches[count % of])
            count += 1
            now = clock()
        ends.append(now)
        runs.append(count)
    return Windows(start=start, ends=tuple(ends), runs=tuple(runs)).model_dump_json()


if __name__ == "__main__":
    serve(work, sys.argv[1:])
