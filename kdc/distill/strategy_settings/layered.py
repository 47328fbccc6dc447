"""Settings of the strategy in which the student's layers teach one another."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class Layered(Strategy):
    """Classifiers on inner layers, each taught by the next deeper one. Source: LSSKD, arXiv:2506.07055."""

    policy: ClassVar[str] = "kdc.distill.strategies.layered:LayeredAnswers"
    kind: Literal["lsskd"] = "lsskd"
    weight: float = Field(default=1.0, ge=0)
    stages: int = Field(default=3, ge=1, description="inner layers with a classifier, where the student has as many")
    layers: tuple[str, ...] = Field(
        default=(), description="their module paths, shallow to deep, instead of found ones"
    )
    rotations: int = Field(
        default=4, ge=1, le=4, description="quarter turns that are told apart, of square images; 1: labels only"
    )
    temperature: float = Field(default=3.0, gt=0, description="between the stages")
    between: float = Field(default=1.0, ge=0, description="weight of the stages' agreement beside their labels")
