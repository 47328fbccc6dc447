"""The budget: hard limits, and whether a measured student meets them."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, Field


class Budget(BaseModel, frozen=True, extra="forbid"):
    """Hard limits on the student; one that is absent binds nothing.

    `max_drop` is in points of the task's metric against the teacher. `min_speedup` is against the teacher's own exported
    file on the same target, and is held by the lower end of the measured ratio's 95% interval. A latency is of hot runs,
    back to back, unless its key says `@cold`: then every run finds the caches swept, as by an application's other work.
    """

    latency_ms: float | None = Field(default=None, gt=0, description="at `percentile`, batch 1, on the target")
    latency_ms_cold: float | None = Field(
        default=None, gt=0, alias="latency_ms@cold", description="the same, of runs that each find the caches swept"
    )
    percentile: float = Field(default=50, gt=0, lt=100, description="which percentile of the latencies is limited")
    min_speedup: float | None = Field(default=None, gt=1, description="times faster than the teacher, lower bound")
    size_mb: float | None = Field(default=None, gt=0, description="of the file that ships, 1 MB = 10^6 bytes")
    macs: float | None = Field(default=None, gt=0, description="multiply-accumulates of one sample")
    peak_memory_mb: float | None = Field(default=None, gt=0, description="over the runtime's own baseline")
    max_drop: float | None = Field(default=1.0, ge=0, description="points below the teacher; null: any drop will do")
    max_churn: float | None = Field(
        default=None, ge=0, le=100, description="percent of answers that differ from the previous release's"
    )
    compile_minutes: float | None = Field(default=None, gt=0, description="for the whole run")


class Cost(BaseModel, frozen=True, extra="forbid"):
    """What a model costs on the target. `latency_ms` is measured in the target's runtime, never estimated."""

    latency_ms: float
    size_mb: float
    macs: float
    parameters: int
    cold_ms: float | None = None
    """The latency of cold runs. Measured where the budget limits it, else None; and so is the next."""
    peak_memory_mb: float | None = None


class Verdict(BaseModel, frozen=True, extra="forbid"):
    """One limit of the budget beside what was measured."""

    name: str
    limit: float
    value: float
    met: bool
    emulated: bool = Field(default=False, description="the value is an emulator's, which meets no limit")


def within(cost: Cost, budget: Budget, teacher: Callable[[], Cost], headroom: float) -> bool:
    """Whether a forecast stays under every limit it can be held against, with this share of each to spare."""
    spare = 1 - headroom
    # Every limit is read, whatever was measured: a pass that calls this depends on all of them (`kdc.core.reads`).
    limits = [
        (cost.latency_ms, budget.latency_ms),
        (cost.cold_ms, budget.latency_ms_cold),
        (cost.size_mb, budget.size_mb),
        (cost.macs, budget.macs),
        (cost.peak_memory_mb, budget.peak_memory_mb),
    ]
    if budget.min_speedup is not None:
        limits.append((cost.latency_ms, teacher().latency_ms / budget.min_speedup))
    return all(value <= limit * spare for value, limit in limits if value is not None and limit is not None)
