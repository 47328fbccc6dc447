"""How long a model would take: an estimate from a calibration, by kernel, without timing anything.

Read the calibration once, then ask for any number of files; what is asked costs one load and one run of each. An estimate
ranks and sorts out; it is never shown as measured, and no budget is met by it. No pass asks for one yet.

    calibration = load(device)
    estimate = predict(path, calibration, device)
    if estimate.covered > 0.9 and estimate.ms < budget: ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx_ir
from pydantic import BaseModel, Field

from kdc.core.device import Device
from targets.predictor.calibration import Calibration
from targets.predictor.kernels import Kernel, read_kernels
from targets.roofline import Peaks

UNKNOWN_NODE_NS = 1000.0  # what a node of an unknown kind is taken to cost beside its bytes and products


class KernelEstimate(BaseModel, frozen=True, extra="forbid"):
    """One kernel. basis: a measured kind near measured sizes, or far from all of them, or a bare roofline."""

    name: str
    kind: str
    ms: float
    macs: int
    basis: Literal["table", "far from what was measured", "unknown kind"]


class Estimate(BaseModel, frozen=True, extra="forbid"):
    """An estimated latency. covered: the share of multiply-accumulates in kernels that the table knows.

    unknown: kinds that were never measured, whose time is a bare roofline's; far: kinds that were measured at other
    sizes only.
    """

    source: Literal["estimated"] = "estimated"
    ms: float
    run_ms: float = Field(description="what a run costs beside its kernels")
    kernels: tuple[KernelEstimate, ...] = Field(repr=False)
    covered: float
    unknown: tuple[str, ...]
    far: tuple[str, ...]


def predict(model: Path | onnx_ir.Model, calibration: Calibration, device: Device) -> Estimate:
    """Estimate the latency of one run of an ONNX model.

    Args: calibration: of this device, from `load`, which refuses another machine's.

    Raises: TargetError where the runtime cannot load or run the model.
    """
    return estimate(read_kernels(model, device), calibration)


def estimate(kernels: tuple[Kernel, ...], calibration: Calibration) -> Estimate:
    """Estimate the latency of kernels that were read before."""
    found = tuple(_one(kernel, calibration) for kernel in kernels)
    run_ms = calibration.table.run_ns / 1e6
    macs = sum(kernel.macs for kernel in kernels)
    known = sum(each.macs for each in found if each.basis == "table")
    return Estimate(
        ms=run_ms + sum(each.ms for each in found),
        run_ms=run_ms,
        kernels=found,
        covered=known / macs if macs else 1.0,
        unknown=_kinds(found, "unknown kind"),
        far=_kinds(found, "far from what was measured"),
    )


def _one(kernel: Kernel, calibration: Calibration) -> KernelEstimate:
    ns = calibration.table.kernel_ns(kernel)
    near = ns is not None and calibration.table.near(kernel)
    return KernelEstimate(
        name=kernel.name,
        kind=kernel.kind,
        ms=(_bare_ns(kernel, calibration.peaks) if ns is None else ns) / 1e6,
        macs=kernel.macs,
        basis="unknown kind" if ns is None else "table" if near else "far from what was measured",
    )


def _bare_ns(kernel: Kernel, peaks: Peaks) -> float:
    moved = kernel.read_bytes + kernel.weight_bytes + kernel.written_bytes
    return UNKNOWN_NODE_NS + 1e9 * max(2 * kernel.macs / peaks.flops_per_s, moved / peaks.bytes_per_s)


def _kinds(found: tuple[KernelEstimate, ...], basis: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.kind for each in found if each.basis == basis))
