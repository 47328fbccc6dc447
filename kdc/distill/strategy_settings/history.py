"""Settings of strategies in which the student learns from what it was itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class PastSelf(Strategy):
    """Labels mixed with the student's own answers an epoch ago. Source: PS-KD, Kim et al. 2021, arXiv:2006.12000."""

    policy: ClassVar[str] = "kdc.distill.strategies.history:PastAnswers"
    kind: Literal["ps-kd"] = "ps-kd"
    weight: float = Field(default=1.0, ge=0)
    share: float = Field(default=0.8, ge=0, le=1, description="of the past answers in the target, at the last epoch")
