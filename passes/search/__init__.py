"""Search: which structure the student has, before anything long is trained."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kdc.core.budget import Budget
from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.distill.settings import Training
from passes.search.spaces import (
    MobileSpace,
    OwnSpace,
    OwnStudent,
    PlainSpace,
    ResidualSpace,
    ShrunkSpace,
    Space,
    Student,
)

DEFAULT_KEEP_MACS = 0.1
TIMED = ("latency_ms", "latency_ms_cold", "min_speedup", "size_mb", "peak_memory_mb")
"""Limits that take a file to be seen; multiply-accumulates are counted in the structure."""
DEFAULT_SPACES = (PlainSpace(), ResidualSpace(), MobileSpace(), ShrunkSpace())


class Structure(Decision):
    """The student's structure as a value, and the seed that its first weights are drawn with."""

    student: Student
    seed: int


class Search(Pass[Structure]):
    """Find the student's structure in typed spaces, judged by its latency and short distillations, and train it.

    Candidates within the budget are bred by a ranking that needs no training; the best of them are distilled for a
    short time, the worse half leaves, the others go on for twice as long, until one is left.
    """

    kind: ClassVar[str] = "search"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    decision_type: ClassVar[type[Decision]] = Structure

    spaces: tuple[Space, ...] | None = Field(
        default=None,
        description="where structures come from: families plain, residual, mobile; shrunk, the incoming model with less of "
        "it; own, your callable; absent: the first four, as far as they can take the model's inputs",
    )
    student: Student | None = Field(
        default=None,
        description="this structure, and nothing is searched: `student` of an earlier decision, as it is or edited",
    )
    ranking: Literal["diswot", "parameters", "random"] = Field(
        default="parameters",
        description="what candidates are bred by: DisWOT (Dong et al. 2023, arXiv:2303.15678), the number of parameters, "
        "or chance",
    )
    samples: int = Field(default=64, ge=2, description="in the mini-batch that DisWOT compares models on")
    population: int = Field(default=16, ge=2, description="candidates drawn at first; as many are alive at any time")
    generations: int = Field(default=5, ge=0, description="how often the better half has children")
    finalists: int = Field(default=8, ge=1, description="candidates that are distilled for a short time")
    epochs: int = Field(
        default=1, ge=1, description="of the first short distillation; each further one is twice as long"
    )
    keep_macs: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the incoming model's multiply-accumulates that a candidate may have; absent: what the "
        f"budget's latency, speed-up, size and MACs allow, {DEFAULT_KEEP_MACS} where it has none of them",
    )
    headroom: float = Field(
        default=0.1, ge=0, lt=1, description="share of every limit that is left free by the forecast"
    )
    training: Training = Field(default=Training(), description="of the student that was found")

    @field_validator("spaces")
    @classmethod
    def _not_empty(cls, spaces: tuple[Space, ...] | None) -> tuple[Space, ...] | None:
        if spaces == ():  # not min_length: that would be told again of a list whose only space is wrong
            raise ValueError("at least one space; leave the key out for all that fit")
        return spaces

    @model_validator(mode="after")
    def _agree(self) -> Search:
        if self.finalists > self.population:
            raise ValueError(f"finalists, {self.finalists}, are more than the population, {self.population}")
        return self

    def contract(self, device: Device) -> Contract:
        """A trained float model without data-dependent control flow in; another one out."""
        return Contract(requires=frozenset({Fact.TORCH, Fact.FLOAT, Fact.FITTED, Fact.STATIC}))

    def measures(self, budget: Budget) -> bool:
        """Whether candidates are timed on the target."""
        return self.student is None and any(getattr(budget, name) is not None for name in TIMED)

    def reads(self, budget: Budget) -> tuple[str, ...]:
        """What a candidate may cost."""
        return (*TIMED, "macs") if self.student is None else ()

    def structural(self) -> Search:
        """A structure named by hand is not trained to be decided on; a search trains its candidates."""
        return self if self.student is None else Search(student=self.student)

    def code(self) -> tuple[str, ...]:
        """The callables of the user's own spaces."""
        named = {space.build for space in self.spaces or () if isinstance(space, OwnSpace)}
        if isinstance(self.student, OwnStudent):
            named.add(self.student.build)
        return tuple(sorted(named))

    def training_epochs(self) -> float:
        """Of the short distillations, and of the winner's training."""
        return self.training.epochs + (self.judging_epochs() if self.student is None else 0)

    def judging_epochs(self) -> float:
        """Of the short distillations: each round halves the candidates and doubles their epochs."""
        return self.finalists * self.epochs * max(self.finalists - 1, 0).bit_length()

    def decide(self, artifact: Any, context: Context) -> Structure:
        """Breed, measure and distil candidates; the best of them. Where not even the smallest member of any space meets the
        budget, the one that misses it by the least, and a note says so.

        Raises: ModelError where a family cannot take the model's inputs, or more than half of the candidates fail.
        """
        from passes.search.decide import decide

        if self.student is not None:
            return Structure(student=self.student, seed=context.seed)
        return decide(self, artifact, context)

    def apply(self, artifact: Any, decision: Structure) -> Any:
        """The student of this structure with its first weights: drawn by the decision's seed, or cut from the model's."""
        from passes.search.construct import build

        return artifact.with_model(build(decision.student, artifact, decision.seed))

    def tune(self, artifact: Any, context: Context) -> Any:
        """Go on from the weights of the short distillations, where these are at hand."""
        from passes.search.judge import trained

        return artifact.with_model(trained(artifact.model, context, self.training))
