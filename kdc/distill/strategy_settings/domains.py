"""Settings of how much the student is to learn where it is furthest from its teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class ClassGaps(Strategy):
    """Classes in which the student is far behind the teacher count more. Source: as DDK's domains, arXiv:2407.16154."""

    policy: ClassVar[str] = "kdc.distill.strategies.domains:WeighedByGap"
    kind: Literal["ddk"] = "ddk"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of each class's gap, from batch to batch; ours")
    even: float = Field(default=0.5, ge=0, le=1, description="share of the weight that all classes have alike; ours")
