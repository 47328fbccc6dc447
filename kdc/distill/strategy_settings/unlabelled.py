"""Settings of the use of samples without labels."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class Unlabelled(Strategy):
    """A share of each batch is of the data's unlabeled split. An epoch is still one over the labelled samples."""

    policy: ClassVar[str] = "kdc.distill.strategies.unlabelled:UnlabelledSamples"
    stage: ClassVar[int] = 0
    kind: Literal["unlabelled"] = "unlabelled"
    share: float = Field(default=0.5, gt=0, le=1, description="of each batch; 1: no labelled sample is drawn")
    per_class: int | None = Field(
        default=None, ge=1, description="use only the samples of which the teacher is surest, this many of each class"
    )
