"""Settings of mixtures that only the student sees."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from kdc.distill.strategy_settings.base import Strategy


class StudentMixup(Strategy):
    """The student sees mixtures, the teacher is asked on what was mixed. For a mixture that both see, there is `mixup`."""

    policy: ClassVar[str] = "kdc.distill.strategies.student_mixing:MixedForTheStudent"
    stage: ClassVar[int] = 3
    mixes: ClassVar[bool] = True
    kind: Literal["student-mixup"] = "student-mixup"
    alpha: float = Field(default=1.0, gt=0, description="of Beta(alpha, alpha), from which shares are drawn")
    portion: float = Field(default=1.0, gt=0, le=1, description="of the samples that are mixed; below 1: partial mixup")
