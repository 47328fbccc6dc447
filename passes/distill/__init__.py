"""Training alone: the student's structure stays as it is. One training, or a course of several."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.distill.settings import Training

if TYPE_CHECKING:
    from kdc.core.artifact import Artifact


class Assistants(BaseModel, frozen=True, extra="forbid"):
    """Models of sizes between teacher and student, each taught by the one above. Source: TAKD, arXiv:1902.03393."""

    keep_macs: Literal["auto"] | Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = (
        Field(
            default="auto",
            description="shares of the teacher's multiply-accumulates, the largest first; auto: one of `candidates`, chosen "
            "by a trial of each (AMD, arXiv:2407.04208)",
        )
    )
    candidates: int = Field(default=3, ge=1, description="sizes that auto tries, in equal ratios down to the student's")
    trial_epochs: int = Field(default=3, ge=1, description="of each candidate's trial")
    training: Training | None = Field(default=None, description="of the assistants; absent: the student's own")

    def epochs_beside(self, training: Training) -> float:
        """Of all assistants and their trials, where the student has this training."""
        epochs = (self.training or training).epochs
        if self.keep_macs == "auto":
            return epochs + self.trial_epochs * self.candidates
        return epochs * len(self.keep_macs)

    @model_validator(mode="after")
    def _each_smaller_than_the_one_before(self) -> Self:
        shares = [] if self.keep_macs == "auto" else list(self.keep_macs)
        if any(share >= before for before, share in pairwise(shares)):
            raise ValueError(
                f"assistants of {shares} of the teacher are not each smaller than the one before; sort them"
            )
        return self


class Unchanged(Decision):
    """Nothing is decided: the structure stays."""


class Distill(Pass[Unchanged]):
    """Train the student further on the teacher's answers, its structure unchanged."""

    kind: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    decision_type: ClassVar[type[Decision]] = Unchanged

    training: Training = Training()
    stages: tuple[Training, ...] = Field(
        default=(),
        description="trainings before `training`, in their order: the generic first, the task last (G2SD, "
        "arXiv:2302.14431; ERNIE-Tiny, arXiv:2106.02241)",
    )
    generations: int = Field(
        default=1,
        ge=1,
        description="how many students in a chain: each begins as the first one did, and learns from the one before "
        "(born-again networks, arXiv:1805.04770)",
    )
    assistants: Assistants | None = Field(default=None, description="between teacher and student; absent: none")

    def contract(self, device: Device) -> Contract:
        """A torch model that answers in one way in (exits have training of their own), the same structure out, trained."""
        return Contract(requires=frozenset({Fact.TORCH, Fact.STATIC}), provides=frozenset({Fact.FITTED}))

    def training_epochs(self) -> float:
        """Of all trainings of the course."""
        own = self.training.epochs * self.generations + sum(stage.epochs for stage in self.stages)
        if self.assistants is None:
            return own
        return own + self.assistants.epochs_beside(self.training)

    def structural(self) -> Distill:
        """All settings are of trainings."""
        return Distill()

    def decide(self, artifact: Artifact[Any], context: Context) -> Unchanged:
        """Nothing to decide."""
        return Unchanged()

    def apply(self, artifact: Artifact[Any], decision: Unchanged) -> Artifact[Any]:
        """A copy, so that training leaves the incoming model as it was."""
        import copy

        return artifact.with_model(copy.deepcopy(artifact.model))

    def tune(self, artifact: Artifact[Any], context: Context) -> Artifact[Any]:
        """Train in the one loop: the assistants, then the student in its stages, then its generations.

        Raises: ModelError where assistants are asked for and the teacher cannot be cut.
        """
        from passes.distill.course import run

        return artifact.with_model(run(self, artifact, context))
