"""Sweeps: one file at several batch sizes and numbers of threads, each point in fresh processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.observe import Emit, silent
from kdc.core.spec import DeviceFile
from targets.measure import compare
from targets.runtime import Array
from targets.settings import PROCESSES_LEAST, Settings

SECONDS_LEAST = 1.0  # of a point


class Point(BaseModel, frozen=True, extra="forbid"):
    """One point of a sweep; the interval is that of the median."""

    batch: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    per_s: float = Field(description="samples a second, at the median")
    notes: tuple[str, ...]


def parse_sizes(text: str, flag: str) -> tuple[int, ...]:
    """Numbers from a text such as `1,2,4`, each once, in order.

    Raises: TargetError where one is none, or below 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise TargetError(f"{flag} {text}: are no numbers above 0", do=f"write them as `{flag} 1,2,4`")
    return tuple(sorted({int(part) for part in parts}))


def sweep(
    file_for: Callable[[Device], DeviceFile],
    device: Device,
    batches: Sequence[int],
    threads: Sequence[int],
    inputs: Sequence[Array] | None = None,
    *,
    seconds: float = 20.0,
    seed: int = 0,
    emit: Emit = silent,
) -> list[Point]:
    """Time a file at each batch with each number of threads; `seconds` are shared out among the points.

    Args: file_for: the file as it is loaded on a device of that batch and number of threads.

    Raises: TargetError where there are fewer cores, or the file's batch is fixed at another size.
    """
    cores = psutil.cpu_count() or 1
    if max(threads) > cores:
        raise TargetError(
            f"--threads {','.join(map(str, threads))}: this machine runs {cores} at once", do=f"keep to at most {cores}"
        )
    each = max(SECONDS_LEAST, seconds / (len(batches) * len(threads)))
    points = []
    for count in threads:
        for batch in batches:
            at = device.model_copy(update={"batch": batch, "threads": count})
            settings = Settings(seconds=each, processes_min=PROCESSES_LEAST)
            found = compare(file_for(at), None, at, inputs, settings, seed=seed, emit=emit)
            latency = found.candidate.latency
            points.append(
                Point(
                    batch=batch,
                    threads=count,
                    median_ms=latency.median_ms,
                    low_ms=latency.low_ms,
                    high_ms=latency.high_ms,
                    per_s=1e3 * batch / latency.median_ms,
                    notes=found.notes,
                )
            )
    return points


def check_batches(shapes: Sequence[tuple[int | str, ...]], batches: Sequence[int]) -> None:
    """Raises: TargetError where an input's first size is fixed and a batch is another: nothing would then be swept.

    Args: shapes: of the model's inputs.
    """
    fixed = {shape[0] for shape in shapes if shape and isinstance(shape[0], int)}
    free = any(shape and isinstance(shape[0], str) for shape in shapes)
    if not free and fixed and set(batches) != {min(fixed)}:
        raise TargetError(
            f"--batches {','.join(map(str, batches))}: the model's batch is fixed at {', '.join(map(str, sorted(fixed)))}",
            do="export it with a free batch",
        )
