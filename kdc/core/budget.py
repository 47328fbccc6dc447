"""The budget: hard limits, and whether a measured student meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, Field, computed_field, field_validator


class DropLimit(BaseModel, frozen=True, extra="forbid"):
    """How many points below the teacher the student may be, and which end of the drop's interval is held to it."""

    points: float = Field(ge=0, description="points of the task's metric below the teacher, on the validation split")
    by: Literal["point", "upper"] = Field(
        default="point", description="point: the drop that was seen; upper: the upper end of its paired 95% interval"
    )


class Budget(BaseModel, frozen=True, extra="forbid"):
    """Hard limits on the student; one that is absent binds nothing.

    `max_drop` is in points of the task's metric against the teacher; a number is `{points: number, by: point}`.
    `min_speedup` is against the teacher's own exported file on the same target. A latency is of hot runs, back to back,
    unless its key says `@cold`: then every run finds the caches swept, as by an application's other work. Latency and
    speed-up hold when the worse end of their 95% interval holds.
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
    max_drop: float | DropLimit | None = Field(
        default=1.0,
        description="points below the teacher, or {points: 1, by: upper}; null: any drop will do",
    )
    max_churn: float | None = Field(
        default=None, ge=0, le=100, description="percent of answers that differ from the previous release's"
    )
    compile_minutes: float | None = Field(default=None, gt=0, description="for the whole run")

    @field_validator("max_drop")
    @classmethod
    def _not_negative(cls, limit: float | DropLimit | None) -> float | DropLimit | None:
        if isinstance(limit, float) and limit < 0:
            raise ValueError("greater than or equal to 0")
        return limit

    @property
    def drop(self) -> DropLimit | None:
        """`max_drop` in its full form."""
        limit = self.max_drop
        return DropLimit(points=limit) if isinstance(limit, float) else limit

    @property
    def asks_for_speed(self) -> bool:
        """Whether a student must be proven faster: latency or speed-up is limited, or no cost at all is."""
        speed = (self.latency_ms, self.latency_ms_cold, self.min_speedup)
        others = (self.size_mb, self.macs, self.peak_memory_mb)
        return any(limit is not None for limit in speed) or all(limit is None for limit in others)


class Cost(BaseModel, frozen=True, extra="forbid"):
    """What a model costs on the target. `latency_ms` is measured in the target's runtime, never estimated."""

    latency_ms: float
    size_mb: float
    macs: float
    parameters: int
    cold_ms: float | None = None
    """The latency of cold runs. Measured where the budget limits it, else None; and so is the next."""
    peak_memory_mb: float | None = None


Bound = Literal["at most", "at least", "above"]


class Verdict(BaseModel, frozen=True, extra="ignore"):
    """One limit of the budget beside the figure that is held to it. Whether it is met follows from these figures alone."""

    name: str = Field(description="the budget's key; proven_faster and not_slower are the rule for the student's speed")
    limit: float
    bound: Bound = Field(default="at most", description="how the value must stand to the limit")
    value: float
    end: str = Field(description="which figure the value is: a point, the end of an interval, an exact count")
    tolerance: float = Field(default=0.0, ge=0, description="by how much the value may pass the limit")
    test: tuple[float, float] | None = Field(
        default=None, description="the 95% interval of the same figure on the test split, which confirms once"
    )
    emulated: bool = Field(default=False, description="the value is an emulator's, which meets no limit")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool:
        """Whether the limit holds: by its value, measured on the device's own processor, and not denied by the test."""
        return self.within and not self.emulated and not self.contradicted

    @property
    def within(self) -> bool:
        """Whether the value itself keeps to the limit."""
        if self.bound == "at least":
            return self.value >= self.limit
        if self.bound == "above":
            return self.value > self.limit
        return self.value <= self.limit + self.tolerance

    @property
    def contradicted(self) -> bool:
        """Whether the whole interval on the test split lies beyond the limit."""
        return self.test is not None and self.test[0] > self.limit


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
