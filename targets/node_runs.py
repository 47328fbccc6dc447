"""The process that ONNX Runtime's profiler runs in: `python -m targets.node_runs JOB RESULT`. It times nothing itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from pydantic import BaseModel

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.apart import serve
from targets.runtime import feeds
from targets.samples import read_samples

WARM_UP_RUNS = 5
RUNS_LEAST = 10
RUNS_MOST = 300
EVENTS_MOST = 500_000  # the profiler keeps a million and then stops without a word


class Job(BaseModel, frozen=True):
    """One file under the profiler. `inputs` is an .npz with arrays "0", "1", ...; `folder` takes the profile."""

    device: Device
    file: DeviceFile
    inputs: Path | None
    seed: int
    seconds: float
    folder: Path


class Found(BaseModel, frozen=True):
    """Where the profile lies, and the optimized graph where it could be written; the first runs are warm-up."""

    profile: Path
    optimized: Path | None
    warm_up_runs: int
    batch: int


def work(text: str) -> str:
    """Load the file as for timing, but with the profiler on, and run it."""
    from targets.onnxruntime import OrtEngine, session_options, start_session

    job = Job.model_validate_json(text)
    optimized = job.folder / "optimized.onnx"

    def session(keep: bool) -> Any:
        options = session_options(job.device.threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(job.folder / "profile")
        if keep:
            options.optimized_model_filepath = str(optimized)
        return start_session(job.file.path, job.device, options)

    try:
        loaded = session(True)
    except TargetError:  # a graph with compiled nodes, or one above 2 GB, cannot be written; it can still be run
        optimized.unlink(missing_ok=True)
        loaded = session(False)
    engine = OrtEngine(loaded)
    batches = feeds(engine, read_samples(job.inputs), job.device.batch, np.random.default_rng(job.seed))
    runs, start = 0, time.monotonic()
    most = RUNS_MOST
    while runs < RUNS_LEAST + WARM_UP_RUNS or (runs < most and time.monotonic() - start < job.seconds):
        engine.run(batches[runs % len(batches)])
        runs += 1
        if runs == 1 and optimized.exists():
            nodes = len(onnx.load(optimized, load_external_data=False).graph.node)
            most = min(RUNS_MOST, EVENTS_MOST // max(1, nodes))
    profile = Path(loaded.end_profiling())
    return Found(
        profile=profile,
        optimized=optimized if optimized.exists() else None,
        warm_up_runs=WARM_UP_RUNS,
        batch=job.device.batch,
    ).model_dump_json()


if __name__ == "__main__":
    serve(work, sys.argv[1:])
