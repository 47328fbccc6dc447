"""Settings of strategies that give every sample weights of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class TeacherConfidence(Strategy):
    """Samples weighted by the teacher's largest probability. Source: CWTM of Born-Again Networks, arXiv:1805.04770."""

    policy: ClassVar[str] = "kdc.distill.strategies.confidence:ConfidenceWeights"
    kind: Literal["cwtm"] = "cwtm"
    on: Literal["labels", "teacher", "both"] = Field(
        default="labels", description="the losses that are weighted; the paper's are those of the labels"
    )


class PermutedAnswers(Strategy):
    """All but the teacher's largest output in random order. Source: DKPP of Born-Again Networks, arXiv:1805.04770."""

    policy: ClassVar[str] = "kdc.distill.strategies.confidence:Permutation"
    kind: Literal["dkpp"] = "dkpp"


class NoisyLabels(Strategy):
    """The teacher's loss times xi and the labels' times 1 - xi, where xi may pass 1. Source: Das & Sanghavi 2023,
    arXiv:2301.13304.
    """

    policy: ClassVar[str] = "kdc.distill.strategies.noise:NoiseRobust"
    kind: Literal["noisy-labels"] = "noisy-labels"
    xi: float = Field(default=1.2, ge=0, description="share of the teacher; above 1 labels count against themselves")
    by_sample: bool = Field(
        default=False,
        description="xi times how far the teacher is from the sample's label, 0 to 1, instead of xi for all",
    )


class Trilateral(Strategy):
    """A small network learns each sample's share of the teacher on held-out samples. Source: TGeo-KD,
    arXiv:2312.15112.
    """

    policy: ClassVar[str] = "kdc.distill.strategies.geometry:TrilateralWeights"
    kind: Literal["tgeo-kd"] = "tgeo-kd"
    hidden: int = Field(default=32, ge=1, description="units of the network's hidden layer")
    held_out: Literal["calibration"] = Field(
        default="calibration", description="the split on which the shares are learned; the student is not trained on it"
    )
    every: int = Field(default=2, ge=1, description="steps from one lesson of the network to the next")
    lookahead: float = Field(default=0.1, gt=0, description="length of the student's trial step, times its gradient")
    learning_rate: float = Field(default=1e-2, gt=0, description="of the small network, by Adam")
    batch: int = Field(default=64, ge=1, description="held-out samples of a lesson")
