"""A calibration as a value and as a file: what was measured of one machine, and the table that was fitted to it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from pydantic import BaseModel, ValidationError

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.writing import write_text
from targets.predictor.table import Table
from targets.roofline import Peaks
from targets.runtime import running
from targets.site import watch

FORMAT = 2


class Machine(BaseModel, frozen=True, extra="forbid"):
    """What the times hold for; on anything else they say nothing."""

    cpu: str
    runtime: str
    version: str
    threads: int
    batch: int


class Check(BaseModel, frozen=True, extra="forbid"):
    """How far estimates of whole networks, none of which the fit saw, lie from their measured times.

    Shares of the measured time; kendall_tau compares the two orders.
    """

    networks: int
    median_error: float
    p90_error: float
    kendall_tau: float


class Calibration(BaseModel, frozen=True, extra="forbid"):
    """All that was found of one machine.

    reference_ms: what the reference network took (`targets.predictor.samples.reference`), which all times stand for: on a
    machine that drifts, times are compared with estimates as multiples of it. run_noise: the relative spread of its time
    over processes; ratio_noise: of another network's multiple of it.
    """

    format: int = FORMAT
    device: str
    machine: Machine
    peaks: Peaks
    timer_ns: float
    reference_ms: float
    run_noise: float
    ratio_noise: float
    graphs: int
    seconds: float
    checks: dict[str, Check]
    notes: tuple[str, ...]
    table: Table


def machine_of(device: Device) -> Machine:
    """This machine with a device's runtime and settings.

    Raises: TargetError where the runtime is not installed, or cannot run here what the profile asks for.
    """
    runtime = running(device)
    return Machine(
        cpu=watch(device).environment()["cpu"],
        runtime=device.runtime,
        version=runtime.version(),
        threads=device.threads,
        batch=device.batch,
    )


def check_supported(device: Device) -> None:
    """Raises: TargetError where a device's kernels cannot be read and timed on this machine's processor."""
    reason = None
    if device.runtime != "onnxruntime":
        reason = f"its runtime is {device.runtime}, and only onnxruntime tells what it runs for a model"
    elif set(device.providers) - {"CPUExecutionProvider"}:
        reason = f"it runs on {', '.join(device.providers)}, and only the CPU's kernels are known"
    elif device.address is not None:
        reason = f"it is reached at {device.address}, and a calibration measures the machine that it runs on"
    elif device.emulated or device.architecture not in ("", platform.machine()):
        reason = f"its processor is {device.architecture or 'emulated'}, this machine's is {platform.machine()}"
    if reason is not None:
        raise TargetError(f"target {device.name} cannot be calibrated here: {reason}", do="calibrate cpu-ort")


def default_path(device: Device) -> Path:
    """Where a device's calibration lies: `$XDG_CACHE_HOME/kdc/calibration/NAME.json`, ~/.cache where that is unset."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "kdc" / "calibration" / f"{device.name}.json"


def save(calibration: Calibration, path: Path) -> None:
    """Write it whole or not at all: an interruption leaves what was there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, calibration.model_dump_json())
    except OSError as error:
        raise TargetError(f"{path}: cannot be written: {error.strerror}", do="give another path by --out") from error


def is_calibration(path: Path) -> bool:
    """Whether a file is a calibration of any version."""
    try:
        return bool({"format", "machine", "table"} <= json.loads(path.read_bytes()).keys())
    except (ValueError, AttributeError):
        return False


def known_peaks(device: Device) -> Peaks | None:
    """The peaks that a calibration found; None where this machine has none with this device's runtime and settings."""
    try:
        return load(device).peaks
    except TargetError:
        return None  # no calibration was asked for, so none that is missing or out of date is an error


def load(device: Device, path: Path | None = None) -> Calibration:
    """The calibration of a device on this machine.

    Raises: TargetError where there is none, it cannot be read, or it is of another machine, runtime or setting.
    """
    path = path or default_path(device)
    again = f"kdc targets calibrate {device.name}"
    try:
        found = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TargetError(f"target {device.name}: {path} is not there: nothing was calibrated yet", do=again) from error
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror}", do="check the path") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: is not a calibration of this version of kdc", do=again) from error
    if found.format != FORMAT:
        raise TargetError(f"{path}: has format {found.format}, this version of kdc reads {FORMAT}", do=again)
    here = machine_of(device).model_dump()
    there = found.machine.model_dump()
    apart = [f"{key} {there[key]!r}, here {here[key]!r}" for key in here if here[key] != there[key]]
    if apart:
        raise TargetError(f"{path}: was calibrated elsewhere: {'; '.join(apart)}", do=again)
    return found
