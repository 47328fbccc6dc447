"""What a run found, as typed values; `report.json` is this, written out."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from kdc.core.budget import Verdict
from targets.measure import Latency, Ratio

SCHEMA_VERSION = 1


class Metric(BaseModel, frozen=True, extra="forbid"):
    """The task's headline metric in points, with its 95% interval."""

    name: str
    points: float
    low: float
    high: float


class Drop(BaseModel, frozen=True, extra="forbid"):
    """Points below the teacher on the same samples: 95% interval, and McNemar's exact p-value for right/wrong scores."""

    points: float
    low: float
    high: float
    p_value: float | None


class ModelRow(BaseModel, frozen=True, extra="forbid"):
    """One model as an exported file: what it scores on a split, and what it costs on the target."""

    split: str
    metric: Metric
    metrics: dict[str, float]
    latency: Latency
    size_mb: float
    parameters: int
    macs: int
    peak_memory_mb: float
    sha256: str


class StepRow(BaseModel, frozen=True, extra="forbid"):
    """One compressing pass: what it decided, what it cost, and the student after it, judged on the validation split."""

    name: str
    kind: str
    settings: dict[str, Any]
    decision: dict[str, Any]
    seconds: float
    student: ModelRow
    speedup: Ratio
    drop: Drop
    parity: float
    budget: tuple[Verdict, ...]
    selected: bool


class Report(BaseModel, frozen=True, extra="forbid"):
    """A run. `teacher`, `student`, `speedup` and `drop` are of the test split and the files that ship."""

    schema_version: int = SCHEMA_VERSION
    target: str
    task: str
    teacher: ModelRow
    student: ModelRow
    steps: tuple[StepRow, ...]
    budget: tuple[Verdict, ...]
    met: bool
    speedup: Ratio
    drop: Drop
    notes: tuple[str, ...]
    environment: dict[str, Any]
    seconds: float

    def binding(self) -> str:
        """The limits that are not met, in words."""
        missed = [f"{v.name} is {v.value:.4g}, the limit {v.limit:.4g}" for v in self.budget if not v.met]
        if self.speedup.verdict != "faster":
            missed.append(f"the student is not proven faster: {self.speedup.verdict}")
        return "; ".join(missed)
