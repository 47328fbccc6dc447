"""Training alone: the student's structure stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.distill.settings import Training

if TYPE_CHECKING:
    from kdc.core.artifact import Artifact


class Unchanged(Decision):
    """Nothing is decided: the structure stays."""


class Distill(Pass[Unchanged]):
    """Train the student further on the teacher's answers, its structure unchanged."""

    kind: ClassVar[str] = "distill"
    decision_type: ClassVar[type[Decision]] = Unchanged

    training: Training = Training()

    def contract(self, device: Device) -> Contract:
        """A torch model that answers in one way in (exits have training of their own), the same structure out, trained."""
        return Contract(requires=frozenset({Fact.TORCH, Fact.STATIC}), provides=frozenset({Fact.FITTED}))

    def decide(self, artifact: Artifact[Any], context: Context) -> Unchanged:
        """Nothing to decide."""
        return Unchanged()

    def apply(self, artifact: Artifact[Any], decision: Unchanged) -> Artifact[Any]:
        """A copy, so that training leaves the incoming model as it was."""
        import copy

        return artifact.with_model(copy.deepcopy(artifact.model))

    def tune(self, artifact: Artifact[Any], context: Context) -> Artifact[Any]:
        """Train in the one loop."""
        from kdc.distill.loop import train

        return artifact.with_model(train(artifact.model, context, self.training))
