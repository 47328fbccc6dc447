"""Settings of a discriminator beside the student."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class Discriminator(Strategy):
    """The student learns to answer so that its outputs cannot be told from the teacher's. Source: MEAL V2, arXiv:2009.08453.

    MEAL V2 is this beside `combined-teachers` (the averaged softmax), the objective {kind: kd, temperature: 1, weight: 1}
    alone, without labels, and weight_decay: 0.
    """

    policy: ClassVar[str] = "kdc.distill.strategies.discriminator:OutputDiscriminator"
    kind: Literal["discriminator"] = "discriminator"
    weight: float = Field(default=1.0, ge=0)
    reduction: int = Field(
        default=8, ge=1, description="each hidden layer has as many times fewer units; 8 or more units"
    )
