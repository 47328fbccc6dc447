"""What the system tells of its processors and memory: from Linux's /proc, by the standard library alone.

A device that is measured on need not have psutil. It is asked only where there is no /proc.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

STAT = Path("/proc/stat")
CPUINFO = Path("/proc/cpuinfo")
INTEGER_FEATURES = (
    "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",  # x86
    "asimd", "asimddp", "sve", "i8mm",  # Arm
)  # fmt: skip


class Ticks(NamedTuple):
    """Time since the start, in any one unit: all of it, what was not idle, what a hypervisor took."""

    total: float
    busy: float
    stolen: float


def ticks() -> tuple[Ticks, dict[int, Ticks]]:
    """The time of all processors together, and of each by its number."""
    try:
        lines = STAT.read_text().splitlines()
    except FileNotFoundError:
        return _ticks_of_psutil()
    except OSError:  # Android keeps it from programs
        return Ticks(0, 0, 0), {}
    every, cores = Ticks(0, 0, 0), {}
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu"):
            found = _ticks([float(number) for number in numbers])
            if name == "cpu":
                every = found
            else:
                cores[int(name[3:])] = found
    return every, cores


def _ticks(fields: list[float]) -> Ticks:
    # user nice system idle iowait irq softirq steal; the guests' time that follows is in user and nice already
    fields = (fields + [0.0] * 8)[:8]
    total = sum(fields)
    return Ticks(total, total - fields[3] - fields[4], fields[7])


def _ticks_of_psutil() -> tuple[Ticks, dict[int, Ticks]]:
    import psutil

    def one(times: object) -> Ticks:
        total = sum(tuple(times))  # type: ignore[arg-type]
        return Ticks(total, total - getattr(times, "idle", 0.0), getattr(times, "steal", 0.0))

    return one(psutil.cpu_times()), dict(enumerate(map(one, psutil.cpu_times(percpu=True))))


def physical_cores() -> int:
    """Cores that are not two threads of one; the number of threads where the system does not tell."""
    siblings = set()
    for core in Path("/sys/devices/system/cpu").glob("cpu[0-9]*"):
        with contextlib.suppress(OSError):
            siblings.add((core / "topology" / "thread_siblings_list").read_text())
    if not siblings and not STAT.exists():
        import psutil

        return int(psutil.cpu_count(logical=False) or psutil.cpu_count() or 1)
    return len(siblings) or os.cpu_count() or 1


def allowed_cores() -> int:
    """Processors that this process may use; two threads of a core count twice."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """All of the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        import psutil

        return int(psutil.virtual_memory().total)


def cpu_features() -> tuple[str, ...] | None:
    """The processor's features that decide which integer kernels run, as /proc/cpuinfo names them; None where untold."""
    for name in ("flags", "Features"):  # of x86, of Arm
        text = _cpuinfo(name)
        if text is not None:
            there = set(text.split())
            return tuple(feature for feature in INTEGER_FEATURES if feature in there)
    return None


def cpu_family() -> str | None:
    """Family and model of an x86 processor, implementer and part of an Arm one, as /proc/cpuinfo has them."""
    for names in (("cpu family", "model"), ("CPU implementer", "CPU part")):
        numbers = [_cpuinfo(name) for name in names]
        if all(numbers):
            return ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
    return None


def _cpuinfo(name: str) -> str | None:
    """A field of the first processor."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    return next((text.strip() for key, _, text in (line.partition(":") for line in lines) if key.strip() == name), None)


def cpu_name() -> str | None:
    """The processor's name in /proc/cpuinfo, or the board's, which is what Arm boards give; None where neither is."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), None)


def mapped_bytes(folder: Path) -> int | None:
    """How much of the files in a folder this process has in its address space as pages of theirs; None where untold.

    Files in folders below it are left out, and so are libraries.
    """
    place = folder.resolve()
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    found = 0
    for line in lines:
        addresses, *_, last = line.split(maxsplit=5)
        path = Path(last)
        if path.parent == place and ".so" not in path.name:
            start, end = (int(one, 16) for one in addresses.split("-"))
            found += end - start
    return found


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)
