"""Conditional computation: a model that answers early where it is sure."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator

from kdc.core.budget import Budget
from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.distill.logit_settings import OnOutputs
from kdc.distill.settings import HardLabels, Training


class Exit(BaseModel, frozen=True, extra="forbid"):
    """One exit: where its head stands, what it is made of, and how sure it must be."""

    after: str = Field(description="the layer, or part of the model, behind which the head stands")
    head: Literal["linear", "conv"]
    channels: int = Field(ge=1, description="that the head's linear layer reads")
    threshold: float = Field(ge=0, description="confidence from which on an input leaves here; above 1: none does")
    temperature: float = Field(gt=0, description="that the logits are divided by")


class Exits(Decision):
    """The exits; none: the model stays as it is."""

    exits: tuple[Exit, ...]


class Route(Pass[Exits]):
    """Give the model early exits, distil the teacher into them, and let each input leave where it is sure enough.

    Source: Teerapittayanon et al. 2017, arXiv:1709.01686 (exits by confidence); Scardapane et al. 2020, arXiv:2004.12814.
    """

    kind: ClassVar[str] = "route"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("torch", "numpy", "brevitas")
    decision_type: ClassVar[type[Decision]] = Exits

    exits: tuple[str, ...] = Field(
        default=(), description="names of layers or parts behind which exits may stand; empty: found by the pass"
    )
    max_exits: int = Field(default=2, ge=1, le=4, description="the most exits that are kept")
    head: Literal["linear", "conv"] = Field(
        default="linear",
        description="linear: a mean and one linear layer; conv: a convolution with stride 2 before them",
    )
    backbone: Literal["frozen", "trained"] = Field(
        default="trained", description="whether the model is trained with its exits, or stays as it came to the bit"
    )
    exit_weight: float = Field(
        default=1.0, gt=0, description="weight of the exits' mean loss beside the last stage's own"
    )
    max_drop: float | None = Field(
        default=0.0,
        ge=0,
        description="points below the model as it came, on the validation split, that the exits may cost; below its last "
        "stage where training the exits has cost that some; null: any drop will do",
    )
    mean_latency_ms: float | None = Field(
        default=None, gt=0, description="the best score within this mean latency is chosen, in place of `max_drop`"
    )
    min_gain: float = Field(
        default=1.1,
        ge=1,
        description="the exits ship only where the mean latency without them is at least this multiple of that with them",
    )
    max_last_exit_cost: float = Field(
        default=1.1,
        ge=1,
        description="and where an input that takes the last exit costs at most this multiple of its cost without exits",
    )
    training: Training = Field(default=Training(epochs=5, learning_rate=1e-3), description="of the exits")

    @field_validator("training")
    @classmethod
    def _exits_have_something_to_learn_from(cls, training: Training) -> Training:
        if not any(isinstance(objective, HardLabels | OnOutputs) for objective in training.objectives):
            raise ValueError("exits learn from objectives on outputs alone; add `labels` or `kd` to objectives")
        if training.keep == "best":
            raise ValueError("`keep: best` looks at the last answer alone, and not at the exits'; leave it out")
        return training

    def contract(self, device: Device) -> Contract:
        """A trained model, float or quantized, in; one whose work depends on its input out."""
        return Contract(requires=frozenset({Fact.TORCH, Fact.FITTED, Fact.STATIC}), destroys=frozenset({Fact.STATIC}))

    def refused(self, device: Device) -> str | None:
        """The host's loop over stages, which ships beside the one file, runs them in one runtime."""
        from targets.cascade import RUNTIMES

        if device.runtime in RUNTIMES:
            return None
        return f"early exits need the runtime {' or '.join(RUNTIMES)}, and target {device.name} has {device.runtime}"

    def measures(self, budget: Budget) -> bool:
        """Always: whether an exit pays is a matter of latencies."""
        return True

    def training_epochs(self) -> float:
        """Those of its training."""
        return self.training.epochs

    def decide(self, artifact: Any, context: Context) -> Exits:
        """Train exits at all candidate places on a copy; keep those that pay, at the thresholds that pay best.

        Raises: ModelError where the model cannot be cut in two, or `exits` names no place in it.
        """
        from passes.route.decide import decide

        return decide(self, artifact, context)

    def apply(self, artifact: Any, decision: Exits) -> Any:
        """The model in stages with new heads behind the decision's places; a copy of it where there are none.

        Raises: ModelError where an exit names no place in the model.
        """
        from passes.route.heads import build

        return artifact.with_model(build(artifact, decision))

    def tune(self, artifact: Any, context: Context) -> Any:
        """Put in what was learned for the decision; train what was not (an exit that was named by hand)."""
        from kdc.core.cascade import Cascade
        from passes.route.learn import recover

        if not isinstance(artifact.model, Cascade):
            return artifact
        return artifact.with_model(recover(self, artifact.model, context))
