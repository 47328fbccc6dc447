"""Energy, where the machine tells it: RAPL's counters, a discharging battery, a Jetson's tegrastats; else not at all.

A meter counts for the whole package, battery or board, other work included. What the machine takes while nothing runs is
read for some seconds before and taken off, so that a run's energy is what the run adds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel, Field

from targets.tied import tied

SYS = Path("/sys")
IDLE_SECONDS = 3.0
EVERY_SECONDS = 0.5  # RAPL's counters wrap within a minute at the earliest
TEGRASTATS = "tegrastats"
# The board's input rail: its name on Orin and Xavier, and on Nano.
_RAIL = re.compile(r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0) (\d+)(?:mW)?/\d+")


class Energy(BaseModel, frozen=True, extra="forbid"):
    """Joules of a span of runs. Idle is taken off; it cannot make a run's energy negative, but 0."""

    source: str
    total_j: float
    idle_w: float
    per_run_j: float = Field(ge=0)

    def sentence(self) -> str:
        """For a person."""
        return (
            f"{1e3 * self.per_run_j:.4g} mJ a run over idle by {self.source} ({self.total_j:.4g} J in all, idle"
            f" {self.idle_w:.3g} W)"
        )


class Meter(Protocol):
    """What counts energy."""

    @property
    def name(self) -> str:
        """What it reads."""

    def joules(self) -> float | None:
        """Since it was made; None where it could not be read this time."""

    def close(self) -> None:
        """End what it started."""


class Rapl:
    """The packages' counters under powercap, in microjoules; each wraps at a value that stands beside it."""

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._range = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]
        self._counted = 0.0
        self.name = f"RAPL {', '.join((zone / 'name').read_text().strip() for zone in zones)}"

    def joules(self) -> float | None:
        """Since it was made. A counter that is lower than last time has wrapped, once."""
        try:
            for index, zone in enumerate(self._zones):
                now = _number(zone / "energy_uj")
                gone = now - self._last[index]
                self._counted += gone if gone >= 0 else gone + self._range[index]
                self._last[index] = now
        except (OSError, ValueError):
            return None
        return self._counted / 1e6

    def close(self) -> None:
        """Nothing was started."""


class Watts:
    """A meter of what tells power only: summed up over time, each value holding since the one before it."""

    def __init__(
        self,
        name: str,
        read: Callable[[], float | None],
        close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._read, self._clock = read, clock
        self.close = close
        self._at, self._counted = clock(), 0.0

    def joules(self) -> float | None:
        """Since it was made."""
        watts = self._read()
        if watts is None:
            return None
        now = self._clock()
        self._counted += watts * (now - self._at)
        self._at = now
        return self._counted


def meter(root: Path = SYS) -> Meter | None:
    """The first meter that can be read here; None where there is none. Args: root: of the tree that is /sys."""
    return _rapl(root) or _battery(root) or _tegrastats()


def _number(path: Path) -> int:
    return int(path.read_text())


def _rapl(root: Path) -> Meter | None:
    """The packages: cores and memory controllers below them are parts of theirs."""
    try:
        zones = sorted(
            zone
            for zone in (root / "class/powercap").glob("intel-rapl:*")
            if re.fullmatch(r"intel-rapl:\d+", zone.name) and (zone / "name").read_text().startswith("package")
        )
        return Rapl(zones) if zones else None
    except (OSError, ValueError):  # since 2020 only root may read them
        return None


def _battery(root: Path) -> Meter | None:
    """A battery that is discharging: on a charger it tells what the charger gives."""
    for supply in sorted((root / "class/power_supply").glob("*")):

        def watts(supply: Path = supply) -> float | None:
            try:
                if (supply / "status").read_text().strip() != "Discharging":
                    return None
                if (supply / "power_now").exists():
                    return abs(_number(supply / "power_now")) / 1e6
                return abs(_number(supply / "current_now")) * _number(supply / "voltage_now") / 1e12
            except (OSError, ValueError):
                return None

        if watts() is not None:
            return Watts(f"battery {supply.name}", watts)
    return None


def read_tegrastats(line: str) -> float | None:
    """Watts of the board's input rail in a line of tegrastats; None where it has none."""
    found = _RAIL.search(line)
    return None if found is None else int(found[1]) / 1e3


def _tegrastats() -> Meter | None:
    program = shutil.which(TEGRASTATS)
    if program is None:
        return None
    process = subprocess.Popen(
        tied([program, "--interval", str(round(1000 * EVERY_SECONDS))]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    latest: list[float | None] = [None]

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            latest[0] = read_tegrastats(line)

    threading.Thread(target=follow, daemon=True).start()

    def close() -> None:
        process.kill()
        process.wait()

    return Watts(TEGRASTATS, lambda: latest[0], close)


class Recorder:
    """Reads a meter beside the work: idle at first, then all the time; without a meter it does nothing."""

    def __init__(
        self, source: Meter | None, *, idle_seconds: float = IDLE_SECONDS, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._meter = source
        self._idle_seconds, self._every = idle_seconds, every_seconds
        self._idle_w: float | None = None
        self._at: list[float] = []
        self._joules: list[float] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Recorder:
        if self._meter is not None:
            self._read()
            time.sleep(self._idle_seconds)
            self._read()
            if len(self._at) == 2:
                self._idle_w = (self._joules[1] - self._joules[0]) / (self._at[1] - self._at[0])
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None and self._meter is not None:
            self._over.set()
            self._thread.join()
            self._read()
            self._meter.close()

    def _follow(self) -> None:
        while not self._over.wait(self._every):
            self._read()

    def _read(self) -> None:
        assert self._meter is not None
        joules = self._meter.joules()
        if joules is not None:
            self._at.append(time.monotonic())
            self._joules.append(joules)

    def energy(self, start: float, end: float, runs: int) -> Energy | None:
        """What the runs between two times of the monotonic clock took; None where no meter covered them."""
        if self._meter is None or self._idle_w is None or len(self._at) < 4 or runs == 0:
            return None
        total = float(np.interp(end, self._at, self._joules) - np.interp(start, self._at, self._joules))
        over = max(0.0, total - self._idle_w * (end - start))
        return Energy(source=self._meter.name, total_j=total, idle_w=self._idle_w, per_run_j=over / runs)
