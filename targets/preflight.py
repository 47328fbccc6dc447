"""A look at the machine before it is measured on: what its figures hold for, and what in its state speaks against them.

Linux tells it by files; where one is absent, as in most containers and virtual machines, the value is None, never a
guess. Only the standard library is needed, so that this file can be read and run on a device too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from targets.proc import allowed_cores

NOISY = "noisy machine"
BUSY_PERCENT = 20.0  # of a core: what other work may take before it is told
HOT_C = 80.0  # where no limit can be read; a Raspberry Pi's firmware slows its cores from here
HOT_MARGIN_C = 10.0
HEATED_C = 20.0
# Governors that hold the clock down or let it follow the load by their own clock.
SLOW_GOVERNORS = {"powersave", "conservative"}
# intel_pstate and amd_pstate_epp in active mode call the governor "powersave" that most systems run all day: the clock
# follows the load there. Source: Linux, Documentation/admin-guide/pm/intel_pstate.rst, "Active Mode".
SCALING_POWERSAVE = {"intel_pstate", "amd-pstate-epp", "amd_pstate_epp"}
_CPU_SENSOR = re.compile(r"cpu|\bsoc\b|soc[-_]therm|x86_pkg_temp|coretemp|k10temp|zenpower", re.IGNORECASE)
_PI_THROTTLED_NOW = 0x4  # bit 2 of get_throttled; bits 16 and up only say that it once happened


@dataclass(frozen=True)
class Preflight:
    """The machine's state at one moment; None where the system does not tell.

    Clocks are of the core that is fastest in each. An idle core's `clock_mhz` is low and tells little; `clock_limit_mhz`
    is what the system lets the cores have now, `clock_max_mhz` what they are made for.
    """

    governor: str | None
    clock_mhz: float | None
    clock_max_mhz: float | None
    clock_limit_mhz: float | None
    temperature_c: float | None
    temperature_limit_c: float | None
    throttled: int | None
    """How often the cores were slowed for heat since the system started; only its growth tells something."""
    load_average: tuple[float, ...] | None
    busy_percent: float | None
    """What other work took of the quietest cores, as many as are measured on, in a moment before."""
    allowed_cores: int
    """That this process may use."""
    cpu_quota: float | None
    """Cores' worth of time that a container may take; None: no limit that is told."""
    measuring_threads: int
    versions: Mapping[str, str]
    flags: tuple[str, ...]
    """What speaks against the figures, in words."""

    def described(self) -> dict[str, Any]:
        """As JSON's plain values, the versions beside the others."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        del plain["versions"]
        return {**plain, **self.versions}


def look(
    threads: int,
    versions: Mapping[str, str] | None = None,
    busy_percent: float | None = None,
    root: Path = Path("/"),
    cores: int | None = None,
) -> Preflight:
    """See the machine's state now.

    Args: threads: that the runtime is given. busy_percent: what other work took of the cores to measure on, 0..100.
    root: where `sys` and `proc` lie. cores: that this process may use; the system's answer where None.
    """
    cpufreq = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    first = cpufreq[0] if cpufreq else root / "nowhere"
    governor, driver = _text(first / "scaling_governor"), _text(first / "scaling_driver")
    temperature, limit = _temperature(root)
    found = Preflight(
        governor=governor,
        clock_mhz=_mhz(_all(cpufreq, "scaling_cur_freq")) or _cpuinfo_mhz(root),
        clock_max_mhz=_mhz(_all(cpufreq, "cpuinfo_max_freq")),
        clock_limit_mhz=_mhz(_all(cpufreq, "scaling_max_freq")),
        temperature_c=temperature,
        temperature_limit_c=limit,
        throttled=_throttled(root),
        load_average=_load_average(root),
        busy_percent=busy_percent,
        allowed_cores=allowed_cores() if cores is None else cores,
        cpu_quota=_quota(root),
        measuring_threads=threads,
        versions=dict(versions or {}),
        flags=(),
    )
    return replace(found, flags=tuple(_flags(found, driver, _pi_throttled(root))))


def changes(before: Preflight, after: Preflight) -> list[str]:
    """What happened to the machine while it was measured on, in words."""
    found = []
    if before.throttled is not None and after.throttled is not None and after.throttled > before.throttled:
        found.append(f"throttled machine: heat slowed the cores {after.throttled - before.throttled} times meanwhile")
    if before.clock_limit_mhz and after.clock_limit_mhz and after.clock_limit_mhz < before.clock_limit_mhz:
        found.append(
            f"throttled machine: the clock's limit fell from {before.clock_limit_mhz:.0f} to "
            f"{after.clock_limit_mhz:.0f} MHz meanwhile"
        )
    if before.temperature_c is not None and after.temperature_c is not None:
        hot = after.temperature_c >= _hot_from(after)
        if hot and before.temperature_c < _hot_from(before):
            found.append(f"hot machine: it heated from {before.temperature_c:.0f} to {after.temperature_c:.0f} °C")
        elif after.temperature_c - before.temperature_c >= HEATED_C:
            found.append(
                f"the machine heated from {before.temperature_c:.0f} to {after.temperature_c:.0f} °C: "
                "later runs had another clock, if it follows the heat"
            )
    return found


def _flags(seen: Preflight, driver: str | None, pi_throttled: bool) -> Iterable[str]:
    if seen.governor in SLOW_GOVERNORS and not (seen.governor == "powersave" and driver in SCALING_POWERSAVE):
        yield f"the clock's governor is {seen.governor}: figures are of a slow or changing clock"
    if seen.clock_limit_mhz and seen.clock_max_mhz and seen.clock_limit_mhz < 0.98 * seen.clock_max_mhz:
        yield (
            f"throttled machine: the clock is held at {seen.clock_limit_mhz:.0f} of {seen.clock_max_mhz:.0f} MHz "
            "(power mode, battery or heat)"
        )
    if pi_throttled:
        yield "throttled machine: the firmware slows the cores now, for heat or for want of power"
    if seen.temperature_c is not None and seen.temperature_c >= _hot_from(seen):
        known = "" if seen.temperature_limit_c is None else f", its limit is {seen.temperature_limit_c:.0f}"
        yield f"hot machine: {seen.temperature_c:.0f} °C before it began{known}"
    if seen.busy_percent is not None and seen.busy_percent > BUSY_PERCENT:
        yield f"{NOISY}: other work kept the quietest core {seen.busy_percent:.0f}% busy before it began"
    if seen.measuring_threads > seen.allowed_cores:
        yield f"too few cores: {seen.measuring_threads} threads on {seen.allowed_cores} that this process may use"
    if seen.cpu_quota is not None and seen.cpu_quota < seen.measuring_threads:
        yield (
            f"too few cores: the container may take the time of {seen.cpu_quota:g}, and stops its "
            f"{seen.measuring_threads} threads when that is used up"
        )


def _hot_from(seen: Preflight) -> float:
    return HOT_C if seen.temperature_limit_c is None else seen.temperature_limit_c - HOT_MARGIN_C


def _temperature(root: Path) -> tuple[float | None, float | None]:
    """The hottest of the CPU's own sensors, °C, and the least temperature that its system acts on."""
    found: list[tuple[float, float | None]] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None and _CPU_SENSOR.search(_text(zone / "type") or ""):
            trips = [
                _number(kind.with_name(kind.name.replace("_type", "_temp")))
                for kind in zone.glob("trip_point_*_type")
                if _text(kind) in ("passive", "hot", "critical")
            ]
            found.append((value / 1000, _least(trips)))
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        value = _number(sensor)
        if value is not None and _CPU_SENSOR.search(_text(sensor.with_name("name")) or ""):
            ends = [_number(sensor.with_name(sensor.name.replace("_input", end))) for end in ("_max", "_crit")]
            found.append((value / 1000, _least(ends)))
    return max(found, key=lambda one: one[0]) if found else (None, None)


def _least(millidegrees: Iterable[float | None]) -> float | None:
    # a limit that is not set reads 0, or below
    known = [value / 1000 for value in millidegrees if value is not None and value > 0]
    return min(known) if known else None


def _throttled(root: Path) -> int | None:
    """Intel's counters, of all cores and packages."""
    counters = [
        value
        for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
        if (value := _number(path)) is not None
    ]
    return int(sum(counters)) if counters else None


def _pi_throttled(root: Path) -> bool:
    """What a Raspberry Pi's firmware says. Source: vcgencmd get_throttled, raspberrypi.com/documentation."""
    text = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        return text is not None and bool(int(text, 16) & _PI_THROTTLED_NOW)
    except ValueError:
        return False


def _load_average(root: Path) -> tuple[float, ...] | None:
    text = _text(root / "proc/loadavg")
    if text is not None:
        return tuple(float(part) for part in text.split()[:3])
    if root != Path("/") or not hasattr(os, "getloadavg"):
        return None
    return tuple(round(value, 2) for value in os.getloadavg())


def _quota(root: Path) -> float | None:
    """Cores' worth of time by the control group, its second version or its first."""
    words = (_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _number(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _cpuinfo_mhz(root: Path) -> float | None:
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return max(map(float, found)) if found else None


def _all(folders: Iterable[Path], name: str) -> list[float]:
    return [value for folder in folders if (value := _number(folder / name)) is not None]


def _mhz(khz: list[float]) -> float | None:
    """The fastest core's: of big and little cores the big ones are what a runtime is given."""
    return max(khz) / 1000 if khz else None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # absent, or not ours to read
        return None
