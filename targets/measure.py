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

from collections.abc import Sequence

from kdc.core.device import Device
from kdc.core.observe import Emit, silent
from kdc.core.spec import DeviceFile
from targets.cost import cost_of
from targets.integers import integer_notes
from targets.job import FileTiming
from targets.measured import Cold, Comparison, Measured, Profile
from targets.placement import placements
from targets.process import Workplace
from targets.quick import memory_of
from targets.regime import Task
from targets.runtime import Array, running
from targets.settings import Settings
from targets.skips import which_skip

__all__ = ["Settings", "compare", "measure"]


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
    costs = [cost_of(file, runtime) for file in files]
    mixed = which_skip(files, runtime)
    with Workplace(inputs, device) as place:
        watch = place.watch()
        hashes = [cost[0] for cost in costs]
        memory = memory_of(files, hashes, device, place, settings.timeout_seconds)
        placed = placements(files, hashes, device, place, settings.timeout_seconds)
        task = Task(files, device, mixed, settings, seed, emit)
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
            peak_memory_mb=memory[sha256].peak_bytes / 1e6,
            mapped_mb=_mb(memory[sha256].mapped_bytes),
            parameters=parameters,
            macs=macs,
            placement=placed.get(sha256),
        )
        for index, (file, (sha256, size, parameters, macs)) in enumerate(zip(files, costs, strict=True))
    ]
    return Measured(
        baseline=profiles[0],
        candidates=tuple(profiles[1:]),
        interest=settings.interest,
        reached=hot.reached,
        environment={**described, "pinned_to": hot.pinned, "processes": len(hot.found)},
        notes=(
            *watched,
            *integer_notes(files, runtime, described),
            *_notes(hot.found),
            *([_NO_INPUTS] if any(mixed) and inputs is None else []),
        ),
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


def _mb(count: int | None) -> float | None:
    return None if count is None else count / 1e6


_NO_INPUTS = "the work depends on the input, and no real ones were given: on these the means may be others (--samples)"


def _notes(found: Sequence[tuple[FileTiming, ...]]) -> list[str]:
    unsteady = sum(not timing.steady for process in found for timing in process)
    of = sum(len(process) for process in found)
    # a quarter: on a busy machine a few warm-ups end before their noise lets them be called steady
    return [f"{unsteady} of {of} warm-ups were not steady when their time was over"] if unsteady > of / 4 else []
