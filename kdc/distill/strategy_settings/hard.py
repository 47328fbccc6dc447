"""Settings of images changed so that teacher and student disagree."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class HardAugmentation(Strategy):
    """Move, turn, scale and lighten images to where the models disagree. Source: HARD, arXiv:2305.14890.

    The bounds and steps are ours. A step costs both models a forward and a backward.
    """

    policy: ClassVar[str] = "kdc.distill.strategies.hard:Hardened"
    stage: ClassVar[int] = 1
    kind: Literal["hard"] = "hard"
    portion: float = Field(default=0.5, gt=0, le=1, description="of a batch that is changed")
    steps: int = Field(default=3, ge=1, description="up the gradient of the disagreement")
    rate: float = Field(default=0.3, gt=0, description="length of a step; one of 1 goes from 0 to 0.76 of a bound")
    start: float = Field(default=0.3, ge=0, description="standard deviation of the draws it starts from, likewise")
    translation: float = Field(default=0.2, ge=0, le=1, description="at most, in shares of the image's sides")
    rotation: float = Field(default=20.0, ge=0, le=180, description="at most, in degrees")
    scale: float = Field(default=1.2, ge=1, description="at most, larger or smaller")
    brightness: float = Field(default=0.3, ge=0, description="at most, in standard deviations of the batch's pixels")
