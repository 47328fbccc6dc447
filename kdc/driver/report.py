"""What a run found, as typed values; `report.json` is this, written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field, model_validator

from kdc.core.budget import Verdict
from kdc.distill.strategy_settings.adversarial import Attack
from targets.latency import Latency
from targets.placement import Placement
from targets.ratio import Ratio

SCHEMA_VERSION = 5


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
    cold: Latency | None = Field(default=None, description="of runs that each found the caches swept")
    size_mb: float
    parameters: int
    macs: int
    peak_memory_mb: float
    placement: Placement | None = Field(default=None, description="where the target has providers beside its CPU")
    sha256: str


class ExitRow(BaseModel, frozen=True, extra="forbid"):
    """One way out. `share` of the inputs take it, `points` is the metric of those, `mean_ms` what they cost."""

    after: str
    share: float
    points: float | None
    mean_ms: float | None


class Spread(BaseModel, frozen=True, extra="forbid"):
    """Latency over the inputs, batch 1: each input counts by the median of its runs; `worst_ms` is of the slowest."""

    mean_ms: float
    median_ms: float
    p95_ms: float | None
    worst_ms: float


class Estimate(BaseModel, frozen=True, extra="forbid"):
    """A ratio with its 95% interval over processes."""

    ratio: float
    low: float
    high: float


class Routing(BaseModel, frozen=True, extra="forbid"):
    """A cascade and the same student without exits, on one split."""

    split: str
    exits: tuple[ExitRow, ...]
    cascade: Spread
    plain: Spread
    speedup: Estimate = Field(description="mean latency without exits over the mean with them")
    last_exit: Estimate | None = Field(description="cost of an input that takes the last exit, over that without exits")
    drop: Drop = Field(description="points below the student without exits, same samples")
    disagreeing: int = Field(description="samples that torch sends to another exit than the file; validation split")


class Robustness(BaseModel, frozen=True, extra="forbid"):
    """Teacher and student under an attack on their inputs, each as its PyTorch model, by gradients of its own loss."""

    strategy: str = Field(
        description="that has the attack; of several the one with the largest epsilon, then most steps"
    )
    trained: str = Field(description="the pass with that strategy")
    attack: Attack
    samples: int = Field(description="of the test split; a draw by the recipe's seed where they are fewer than `of`")
    of: int
    teacher: Metric
    student: Metric
    after: str = Field(description="the pass that the student's model is the result of")

    def sentence(self) -> str:
        """What was done, in words."""
        attack, drawn = self.attack, f"{self.samples} of {self.of} samples of the test split"
        return (
            f"{self.student.name}: under the attack of {self.strategy} in {self.trained}, which changes an input by at most "
            f"{attack.epsilon:.3g} of its range in {attack.steps} steps, by gradients of the PyTorch models (the student's "
            f"after {self.after}); {drawn}"
        )


class StepRow(BaseModel, frozen=True, extra="forbid"):
    """One compressing pass: what it decided, what it cost, and the student after it, judged on the validation split."""

    name: str
    kind: str
    settings: dict[str, Any]
    decision: dict[str, Any]
    seconds: float
    student: ModelRow
    speedup: Ratio
    cold_speedup: Ratio | None = Field(default=None, description="of cold runs, teacher's and student's")
    drop: Drop
    parity: float
    budget: tuple[Verdict, ...]
    findings: dict[str, Any] = Field(description="what the pass learned on the way to its decision")
    routing: Routing | None = Field(description="of a step that adds early exits")
    selected: bool


class Report(BaseModel, frozen=True, extra="forbid"):
    """A run. `teacher`, `student`, `speedup` and `drop` are of the test split and the files that ship.

    `budget` has each limit with the figure that is held to it: of the validation split, beside the test split's interval.
    `met` says whether all hold: the student ships. Else it is the nearest, and the command ends with exit code 3.
    """

    schema_version: int = SCHEMA_VERSION
    target: str
    task: str
    teacher: ModelRow
    student: ModelRow
    previous: str | None = Field(default=None, description="the release that churn is against; null: the teacher")
    steps: tuple[StepRow, ...]
    budget: tuple[Verdict, ...]
    met: bool
    speedup: Ratio
    cold_speedup: Ratio | None = Field(default=None, description="of cold runs, teacher's and student's")
    drop: Drop
    robustness: Robustness | None = Field(default=None, description="where a training of the recipe has an attack")
    routing: Routing | None = Field(description="of the student that ships, where it has early exits; test split")
    ships: str = Field(description="the file that the target's runtime loads, in the run's folder")
    notes: tuple[str, ...]
    environment: dict[str, Any]
    seconds: float

    @model_validator(mode="after")
    def _met_is_what_the_limits_say(self) -> Self:
        if self.met != all(one.met for one in self.budget):
            raise ValueError(f"met is {self.met}, which the limits deny: {self.binding() or 'all are met'}")
        return self

    def binding(self) -> str:
        """The limits that are not met, in words."""
        return "; ".join(missed(one) for one in self.budget if not one.met)


def contradictions(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """A note for each limit that held on the validation split and that the test split denies."""
    return tuple(
        f"{one.name}: {one.value:.4g} on the validation split keeps to {one.limit:.4g}, and the test split contradicts it: "
        f"{_test(one)} lies beyond the limit as a whole"
        for one in verdicts
        if one.contradicted and one.within
    )


def missed(verdict: Verdict) -> str:
    """A limit that is not met, in words."""
    if verdict.name in ("proven_faster", "not_slower"):
        what = "is not proven faster" if verdict.name == "proven_faster" else "is proven slower"
        return f"the student {what} than the teacher" + (": its times are an emulator's" if verdict.emulated else "")
    emulated = " by emulation" if verdict.emulated else ""
    if verdict.within and verdict.contradicted:
        return f"{verdict.name} is {_test(verdict)} on the test split, the limit {verdict.limit:.4g}"
    return f"{verdict.name} is {verdict.value:.4g}{emulated} ({verdict.end}), the limit {verdict.limit:.4g}"


def _test(verdict: Verdict) -> str:
    assert verdict.test is not None
    return f"{verdict.test[0]:.4g} to {verdict.test[1]:.4g}"
