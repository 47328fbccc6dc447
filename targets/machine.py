"""The machine that is measured on: its description, its load, one core to stay on, and its memory counters.

Its state (clock, heat, limits) is `targets.preflight`'s.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from targets import proc
from targets.emulation import architecture, is_emulated
from targets.preflight import BUSY_PERCENT, NOISY, Preflight, changes, look

LOOK_SECONDS = 0.1
EMULATED = "emulated: another processor ran this one's instructions; the times say nothing of the device's own"


class Load:
    """How busy other work keeps the cores, looked at while nothing of ours runs."""

    def __init__(self) -> None:
        self.busy: list[float] = []
        self._start, _ = proc.ticks()

    def quietest(self, count: int) -> tuple[int, ...] | None:
        """The `count` cores that did least in the last tenth of a second; None where a process cannot be pinned."""
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        percent = _percent_busy()
        seen = [core for core in allowed if core in percent]
        if not seen:
            self.busy.append(min(percent.values(), default=0.0))
            return None
        cores = sorted(seen, key=lambda core: percent[core])[:count]
        self.busy.append(max(percent[core] for core in cores))
        return tuple(cores) if len(cores) == count else None

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        found = []
        busy = sum(self.busy) / len(self.busy) if self.busy else 0.0
        if busy > BUSY_PERCENT:
            found.append(f"{NOISY}: other work kept the measuring core {busy:.0f}% busy")
        end, _ = proc.ticks()
        total, stolen = end.total - self._start.total, end.stolen - self._start.stolen
        if total > 0 and stolen / total > 0.02:
            found.append(f"{NOISY}: the hypervisor took {100 * stolen / total:.0f}% of the time")
        return found


class Watch:
    """The machine from before a measurement to its end.

    Args: threads: that measure. versions: of the libraries that measure. emulated: said by who knows it, for it is not
    seen everywhere.
    """

    def __init__(self, threads: int, versions: Mapping[str, str], *, emulated: bool = False) -> None:
        self.load = Load()
        self.load.quietest(threads)
        self.before = look(threads, versions, self.load.busy[-1])
        self._emulated = emulated or is_emulated()

    def quietest(self, count: int) -> tuple[int, ...] | None:
        """The `count` cores that do least now; None where a process cannot be pinned."""
        return self.load.quietest(count)

    def environment(self) -> dict[str, Any]:
        """What the figures hold for: the machine's state at the start, and its temperature at the end.

        With `emulated`, true, where the processor is not the machine's own.
        """
        found = {**environment(self.before), "temperature_after_c": look(self.before.measuring_threads).temperature_c}
        return {**found, **({"emulated": True} if self._emulated else {})}

    def notes(self) -> list[str]:
        """What a reader of the figures should know; noise is that of the whole time, not of its first moment."""
        lasting = [flag for flag in self.before.flags if not flag.startswith(NOISY)]
        meanwhile = changes(self.before, look(self.before.measuring_threads))
        return [*([EMULATED] if self._emulated else []), *lasting, *meanwhile, *self.load.notes()]


def _percent_busy() -> dict[int, float]:
    """How busy each core was in the next tenth of a second."""
    _, before = proc.ticks()
    time.sleep(LOOK_SECONDS)
    _, after = proc.ticks()
    return {
        core: 100 * (end.busy - before[core].busy) / max(end.total - before[core].total, 1e-9)
        for core, end in after.items()
        if core in before
    }


def environment(seen: Preflight) -> dict[str, Any]:
    """What the figures hold for: the processor, the system, the libraries' versions, and the state that it was in.

    `processor_features` are those that decide which integer kernels ran; None where they are unknown, as by emulation.
    """
    features = None if is_emulated() else proc.cpu_features()
    return {
        "cpu": proc.cpu_name() or platform.processor() or platform.machine(),
        "cpu_family": proc.cpu_family(),
        "architecture": architecture(),
        "processor_features": None if features is None else list(features),
        "cores": proc.physical_cores(),
        "threads": os.cpu_count(),
        "memory_mb": round(proc.memory_bytes() / 1e6),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **seen.described(),
    }


def pin(cores: tuple[int, ...] | None) -> bool:
    """Keep this process on these cores, so that it does not lose its caches by moving; whether that was possible."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, cores)
    except OSError:  # a container may forbid it
        return False
    return True


def reset_peak() -> None:
    """Let the peak start anew at what is resident now, where the system can (Linux since 4.0)."""
    # Where it cannot, the peak starts with the import of the runtime, which is below a model's own in most cases.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory of this process that ever was resident."""
    try:
        # not getrusage, which on Linux begins with the parent's peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
