"""One regime's processes, started one after the other until the figures are known well enough or the time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kdc.core.device import Device
from kdc.core.observe import Emit, Progress
from kdc.core.spec import DeviceFile
from targets.job import FileTiming
from targets.latency import BlocksNs, Latency, latency_of
from targets.process import Workplace
from targets.ratio import precise
from targets.settings import PROCESSES_LEAST, Settings
from targets.site import Watching


@dataclass(frozen=True)
class Regime:
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
        found = latency_of([process[index] for process in self.found], generator, self.mixed[index])
        return found.model_copy(update={"emulated": emulated})


@dataclass(frozen=True)
class Task:
    """The same files, to be measured in one regime after the other."""

    files: Sequence[DeviceFile]
    device: Device
    mixed: tuple[bool, ...]
    settings: Settings
    seed: int
    emit: Emit

    def measured(self, place: Workplace, watch: Watching, mode: Literal["time", "cold"], seconds: float) -> Regime:
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
            if len(found) >= settings.processes_min and precise(found, settings.precision, self.mixed):
                reached = "precision"
                break
            if spent >= seconds and len(found) >= PROCESSES_LEAST:
                break
        pinned = sorted({core for cores in used if cores is not None for core in cores})
        return Regime(found, self.mixed, reached, pinned, (self.seed, len(found)), swept_bytes)
