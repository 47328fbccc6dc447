"""Streaming: one file chunk after chunk, its states carried, at the stream's own pace and back to back.

A model that listens or feels is asked two things: whether it keeps up with its stream, and how late its answers are. The
real-time factor answers the first: the time that chunks take over the time that they cover, all chunks together, for one
slow chunk in a hundred counts for what it takes. Lateness answers the second: a chunk is late that is not done when the
next one is due. Processes are repeated, as for every figure of kdc; intervals are of the spread between them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.observe import Emit, Progress, silent
from kdc.core.spec import DeviceFile
from kdc.numerics.stats import median_interval, percentile, ratio_interval
from targets.job import Done
from targets.process import Workplace
from targets.runtime import Array, running
from targets.states import Names
from targets.stream_work import CHUNKS_LEAST

PROCESSES = 5  # of each kind
BACK_TO_BACK_SECONDS = 2.0  # the most in one process: without waiting there are chunks enough
BLOCK = 50  # consecutive chunks that are drawn together for the median's interval
TIMEOUT_SECONDS = 300.0  # loading and warming up may take
_UNITS_NS = {"us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}

Verdict = Literal["keeps up", "cannot keep up", "is at its limit"]


class Chunks(BaseModel, frozen=True, extra="forbid"):
    """How long a chunk takes; p95 and p99 only where there are samples enough."""

    n: int
    processes: int
    median_ms: float
    low_ms: float
    high_ms: float
    p95_ms: float | None
    p99_ms: float | None
    worst_ms: float
    real_time: float = Field(description="the time that chunks take over the time that they cover; above 1: too slow")
    real_time_low: float
    real_time_high: float


class Streamed(BaseModel, frozen=True, extra="forbid"):
    """One file on a stream. Samples are nanoseconds, [process][chunk]."""

    path: Path
    chunk_ms: float = Field(description="that one chunk covers")
    states: tuple[tuple[str, str], ...] = Field(description="carried: an output, and the input that took it")
    paced: Chunks
    back_to_back: Chunks
    late: int = Field(description="paced chunks that were not done when the next one was due")
    answer_worst_ms: float = Field(description="the longest from when a chunk was due until it was done")
    verdict: Verdict = Field(description="of the paced real-time factor's whole interval")
    load_ms: float
    first_ms: float
    emulated: bool = Field(default=False, description="no times of the device's own processor")
    environment: dict[str, Any]
    notes: tuple[str, ...]
    paced_ns: tuple[tuple[int, ...], ...] = Field(repr=False)
    answered_ns: tuple[tuple[int, ...], ...] = Field(repr=False, description="paced, from when a chunk was due")
    back_to_back_ns: tuple[tuple[int, ...], ...] = Field(repr=False)


def parse_chunk(text: str) -> int:
    """Nanoseconds from a text such as `10ms`, `0.5s` or `250us`.

    Raises: TargetError where it is no time above 0 with its unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|µs|ms|s)", text.strip())
    chunk_ns = round(float(found[1]) * _UNITS_NS[found[2]]) if found else 0
    if chunk_ns <= 0:
        raise TargetError(f"--stream {text}: is no time that a chunk covers", do="write it as `10ms` or `0.5s`")
    return chunk_ns


def streamed(
    file: DeviceFile,
    device: Device,
    chunk_ns: int,
    chunks: Sequence[Array] | None = None,
    states: Names | None = None,
    *,
    seconds: float = 20.0,
    timeout_seconds: float = TIMEOUT_SECONDS,
    seed: int = 0,
    emit: Emit = silent,
) -> Streamed:
    """Run a file on a stream: fresh processes in turn, one at the stream's pace and one back to back.

    Args: chunk_ns: the time that a chunk covers, > 0. chunks: real ones, one array [n, ...] for each input that is no
    state, in call order; random numbers where None. states: outputs with the inputs that take them; names decide where
    None. seconds: of chunks at the stream's pace, all processes together.

    Raises: TargetError where the file cannot be loaded or run, states or chunks do not fit it, or a process died.
    """
    running(device)
    slice_seconds = seconds / PROCESSES
    paced, unpaced = list[Done](), list[Done]()
    with Workplace(chunks, device) as place:
        watch = place.watch()
        for index in range(2 * PROCESSES):
            waits = index % 2 == 0
            job = replace(
                place.job([file], device, (seed, index // 2), watch.quietest(device.threads)),
                mode="stream",
                chunk_ns=chunk_ns,
                paced=waits,
                states=states,
                slice_seconds=slice_seconds if waits else min(slice_seconds, BACK_TO_BACK_SECONDS),
                limit_seconds=timeout_seconds + 2 * slice_seconds + CHUNKS_LEAST * chunk_ns / 1e9,
            )
            (paced if waits else unpaced).append(place.run(job))
            emit(Progress("streaming", index + 1, 2 * PROCESSES, "processes"))
        environment, notes = watch.environment(), watch.notes()
    return summary(file.path, chunk_ns, paced, unpaced, environment, notes, seed=seed)


def summary(
    path: Path,
    chunk_ns: int,
    paced: Sequence[Done],
    unpaced: Sequence[Done],
    environment: dict[str, Any],
    notes: Sequence[str],
    *,
    seed: int = 0,
) -> Streamed:
    """What the processes' samples say. seed: of the intervals' draws."""
    found = _chunks(paced, chunk_ns, seed)
    answered = np.concatenate([done.answered_ns for done in paced])
    verdict: Verdict = "is at its limit"
    if found.real_time_high < 1:
        verdict = "keeps up"
    elif found.real_time_low > 1:
        verdict = "cannot keep up"
    broken = sorted({name for done in (*paced, *unpaced) for name in done.broken})
    said = [f"the state {name!r} was no number at the end: give real chunks by --samples" for name in broken]
    both = (*paced, *unpaced)
    return Streamed(
        path=path,
        chunk_ms=chunk_ns / 1e6,
        states=paced[0].states,
        paced=found,
        back_to_back=_chunks(unpaced, chunk_ns, seed),
        late=int(np.sum(answered > chunk_ns)),
        answer_worst_ms=float(answered.max()) / 1e6,
        verdict=verdict,
        load_ms=float(np.median([done.load_ns for done in both])) / 1e6,
        first_ms=float(np.median([done.first_ns for done in both])) / 1e6,
        emulated=bool(environment.get("emulated")),
        environment={**environment, "processes": len(both)},
        notes=(*notes, *said),
        paced_ns=tuple(done.spent_ns for done in paced),
        answered_ns=tuple(done.answered_ns for done in paced),
        back_to_back_ns=tuple(done.spent_ns for done in unpaced),
    )


def sentence(found: Streamed) -> str:
    """The result in one sentence."""
    one = found.paced
    said = f"{found.path.name} {found.verdict}"
    if found.verdict != "is at its limit":
        said += " with its stream"
    share = (
        f"chunks take {one.real_time:.3g} [{one.real_time_low:.3g}, {one.real_time_high:.3g}] of the time they cover"
    )
    late = f"{found.late:,} of {one.n:,} were late" if found.late else f"none of {one.n:,} was late"
    return f"{said}: {share}, {late}" + ("; emulated: these are no times of the device's" if found.emulated else "")


ROWS = (
    "median, ms",
    "  95% interval",
    "p95, ms",
    "p99, ms",
    "worst, ms",
    "real-time factor",
    "  95% interval",
    "chunks, processes",
)


def cells(one: Chunks) -> tuple[str, ...]:
    """A cell for each of `ROWS`."""
    return (
        f"{one.median_ms:.4g}",
        f"{one.low_ms:.4g} – {one.high_ms:.4g}",
        "too few chunks" if one.p95_ms is None else f"{one.p95_ms:.4g}",
        "too few chunks" if one.p99_ms is None else f"{one.p99_ms:.4g}",
        f"{one.worst_ms:.4g}",
        f"{one.real_time:.4g}",
        f"{one.real_time_low:.4g} – {one.real_time_high:.4g}",
        f"{one.n:,}, {one.processes}",
    )


def _chunks(found: Sequence[Done], chunk_ns: int, seed: int) -> Chunks:
    clusters = [[done.spent_ns[at : at + BLOCK] for at in range(0, len(done.spent_ns), BLOCK)] for done in found]
    samples = np.concatenate([done.spent_ns for done in found])
    median = median_interval(clusters, np.random.default_rng(seed))
    factor = ratio_interval(np.log([np.mean(done.spent_ns) / chunk_ns for done in found]))
    return Chunks(
        n=samples.size,
        processes=len(found),
        median_ms=median.value / 1e6,
        low_ms=median.low / 1e6,
        high_ms=median.high / 1e6,
        p95_ms=_ms(percentile(samples, 0.95)),
        p99_ms=_ms(percentile(samples, 0.99)),
        worst_ms=float(samples.max()) / 1e6,
        real_time=factor.value,
        real_time_low=factor.low,
        real_time_high=factor.high,
    )


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
