"""Settings of the optimizers of the training loop, readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator


class AdamW(BaseModel, frozen=True, extra="forbid"):
    """Adam with decoupled weight decay. Source: Loshchilov & Hutter 2019, arXiv:1711.05101."""

    kind: Literal["adamw"] = "adamw"


class Sgd(BaseModel, frozen=True, extra="forbid"):
    """Gradient descent with momentum. Its learning rates are some ten times those of adamw: 0.02 to 0.1."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)


class Dot(BaseModel, frozen=True, extra="forbid"):
    """SGD that remembers the teacher's gradients for longer than those of the labels. Source: DOT, arXiv:2307.08436."""

    kind: Literal["dot"] = "dot"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    delta: float = Field(
        default=0.075, ge=0, lt=1, description="momentum - delta for the labels, momentum + delta for the teacher"
    )

    @model_validator(mode="after")
    def _both_are_momenta(self) -> Self:
        if self.momentum + self.delta >= 1 or self.momentum < self.delta:
            raise ValueError(
                f"momentum {self.momentum:g} with delta {self.delta:g} gives {self.momentum - self.delta:g} for the labels "
                f"and {self.momentum + self.delta:g} for the teacher; both must be 0 or more and below 1: lower delta"
            )
        return self


AnyOptimizer = Annotated[AdamW | Sgd | Dot, Field(discriminator="kind")]
