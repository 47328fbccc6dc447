"""Settings of what the teacher's answers to regions of an image are worth."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdc.distill.strategy_settings.base import Strategy


class RegionLabels(Strategy):
    """Regions on which the teacher is not sure are given softened labels instead. Source: FerKD, arXiv:2312.17473."""

    policy: ClassVar[str] = "kdc.distill.strategies.region_labels:Calibrated"
    stage: ClassVar[int] = 2
    kind: Literal["ferkd"] = "ferkd"
    low: float = Field(default=0.3, ge=0, le=1, description="a teacher less confident than this is not asked; ours")
    high: float = Field(
        default=1.0, ge=0, le=1, description="one more confident than this has nothing more to tell; ours"
    )
    above: Literal["keep", "labels"] = Field(
        default="keep", description="for regions above `high`: the teacher's answer, or the softened label too"
    )
    smoothing: float = Field(default=0.1, gt=0, lt=1, description="of the labels: the share of all classes alike")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must not be above high")
        return self
