"""Sustained load: one file back to back for minutes, its throughput window by window, and where it begins to fall.

A figure from a few seconds holds for a cool machine. What a device gives for minutes is what its cooling and its battery
allow, and neither shows before they are used up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from targets.apart import run_apart
from targets.energy import Energy, Recorder, meter
from targets.machine import Load
from targets.onset import find_onset
from targets.runtime import Array
from targets.samples import write_samples
from targets.sustained_run import Job, Windows

WINDOWS = 240  # aimed at
WINDOW_S = (0.05, 5.0)  # at least and at most
START_S = 120.0  # loading and warming up may take
_UNITS = {"s": 1, "m": 60, "h": 3600}


class Throttling(BaseModel, frozen=True, extra="forbid"):
    """When throughput began to fall for good, and from what to what, in batches a second."""

    onset_s: float
    kind: Literal["step", "drift"]
    before_per_s: float
    after_per_s: float


class Sustained(BaseModel, frozen=True, extra="forbid"):
    """One file under load. Rates are batches a second; first and last are medians over a tenth of the windows."""

    path: Path
    seconds: float
    batch: int
    ends_s: tuple[float, ...] = Field(repr=False, description="of the windows, from the start")
    rates_per_s: tuple[float, ...] = Field(repr=False)
    first_per_s: float
    last_per_s: float
    throttling: Throttling | None = Field(description="None: none seen")
    energy: Energy | None = Field(description="None: not available here")
    notes: tuple[str, ...]


def parse_seconds(text: str) -> float:
    """Seconds from a text such as `10m`, `90s`, `1.5h`, or `30`, which are seconds.

    Raises: TargetError where it is no time above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if seconds <= 0:
        raise TargetError(f"--sustained {text}: is no time", do="write it as `10m`, `90s` or `1h`")
    return seconds


def sustain(
    file: DeviceFile, device: Device, seconds: float, inputs: Sequence[Array] | None = None, *, seed: int = 0
) -> Sustained:
    """Run a file back to back in a fresh process, on the quietest core.

    Raises: TargetError where it cannot be run, or the process died or hung.
    """
    load = Load()
    cores = load.quietest(device.threads)
    with scratch_folder("sustained") as folder:
        job = Job(
            device=device,
            file=DeviceFile(file.path.resolve(), file.runtime),
            inputs=write_samples(inputs, folder),
            seed=seed,
            cores=cores,
            seconds=seconds,
            window_seconds=min(max(seconds / WINDOWS, WINDOW_S[0]), WINDOW_S[1]),
        )
        with Recorder(meter()) as recorder:
            text = run_apart(
                "targets.sustained_run",
                job,
                folder,
                about=f"{file.path} under load",
                limit_seconds=START_S + 2 * seconds,
            )
        windows = Windows.model_validate_json(text)
    return summary(file.path, device.batch, windows, recorder, load.notes())


def summary(path: Path, batch: int, windows: Windows, recorder: Recorder, notes: Sequence[str]) -> Sustained:
    """What the windows say."""
    ends = np.array(windows.ends) - windows.start
    rates = np.array(windows.runs) / np.diff(ends, prepend=0.0)
    tenth = max(1, len(rates) // 10)
    found = find_onset(rates.tolist())
    throttling = None
    if found is not None:
        onset = float(ends[found.window - 1]) if found.window else 0.0
        throttling = Throttling(onset_s=onset, kind=found.kind, before_per_s=found.before, after_per_s=found.after)
    return Sustained(
        path=path,
        seconds=float(ends[-1]),
        batch=batch,
        ends_s=tuple(ends.tolist()),
        rates_per_s=tuple(rates.tolist()),
        first_per_s=float(np.median(rates[:tenth])),
        last_per_s=float(np.median(rates[-tenth:])),
        throttling=throttling,
        energy=recorder.energy(windows.start, windows.ends[-1], sum(windows.runs)),
        notes=tuple(notes),
    )


def sentences(found: Sustained) -> list[str]:
    """What was seen, for a person."""
    change = found.last_per_s / found.first_per_s - 1
    said = [
        f"{found.path.name}: {_rate(found.first_per_s)} batches of {found.batch} a second in the first tenth of"
        f" {found.seconds:.0f} s, {_rate(found.last_per_s)} in the last ({change:+.1%})"
    ]
    if found.throttling is None:
        said.append("throttling: none seen")
    else:
        one = found.throttling
        how = "at once" if one.kind == "step" else "little by little"
        said.append(
            f"throttling: from {one.onset_s:.3g} s on, {how}: {_rate(one.before_per_s)} before,"
            f" {_rate(one.after_per_s)} at the end"
        )
    said.append("energy: not available here" if found.energy is None else f"energy: {found.energy.sentence()}")
    return [*said, *(f"note: {note}" for note in found.notes)]


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 1e3 else f"{per_s:.4g}"
