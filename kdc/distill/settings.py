"""Settings of the training loop, readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class HardLabels(BaseModel, frozen=True, extra="forbid"):
    """The task's own loss on the labels (cross-entropy for classification)."""

    kind: Literal["labels"] = "labels"
    weight: float = Field(default=0.1, ge=0)


class SoftTargets(BaseModel, frozen=True, extra="forbid"):
    """Kullback-Leibler divergence from the teacher's softened outputs. Source: Hinton et al. 2015, arXiv:1503.02531."""

    kind: Literal["kd"] = "kd"
    weight: float = Field(default=0.9, ge=0)
    temperature: float = Field(default=4.0, gt=0)


class Hints(BaseModel, frozen=True, extra="forbid"):
    """Match the teacher's inner features through a projector. Source: FitNets, Romero et al. 2015, arXiv:1412.6550."""

    kind: Literal["hints"] = "hints"
    weight: float = Field(default=1.0, ge=0)
    pairs: int = Field(default=2, ge=1, description="how many layers are paired when `layers` is empty")
    layers: dict[str, str] = Field(default={}, description="student's module path: teacher's module path")


Objective = Annotated[HardLabels | SoftTargets | Hints, Field(discriminator="kind")]


class Training(BaseModel, frozen=True, extra="forbid"):
    """How a student is trained. The learning rate rises over `warmup` and falls on a cosine to 1% of its peak."""

    epochs: int = Field(default=30, ge=0)
    batch: int = Field(default=128, ge=1)
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak, of AdamW (Loshchilov & Hutter, arXiv:1711.05101)"
    )
    weight_decay: float = Field(default=1e-3, ge=0, description="on tensors of two and more dimensions")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    ema: float = Field(default=0.998, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    clip_norm: float = Field(default=5.0, gt=0, description="largest norm of the gradient")
    views: int = Field(
        default=4, ge=1, description="augmented views of the training split; the teacher's outputs are kept for each"
    )
    objectives: tuple[Objective, ...] = Field(default=(HardLabels(), SoftTargets()), min_length=1)
    checkpoint_seconds: float = Field(default=20.0, gt=0)
