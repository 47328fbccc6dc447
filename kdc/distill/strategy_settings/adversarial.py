"""Settings of distillation that is robust against adversarial examples."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kdc.distill.strategy_settings.base import Strategy


class Attack(BaseModel, frozen=True, extra="forbid"):
    """Projected gradient ascent within the largest norm. Source: Madry et al. 2018, arXiv:1706.06083.

    Sizes are shares of the inputs' range, so that they mean the same for inputs of 0 to 1, of 0 to 255 and normalised
    ones: 8/255 is that of the literature on pictures.
    """

    epsilon: float = Field(default=8 / 255, gt=0, le=1, description="largest change, as a share of the inputs' range")
    step: float = Field(default=2 / 255, gt=0, le=1, description="of one iteration, as a share of the inputs' range")
    steps: int = Field(default=10, ge=1)
    low: float | None = Field(
        default=None, description="smallest value of an input; None: as seen in the training split"
    )
    high: float | None = Field(default=None, description="largest value; None: as seen, for each channel of pictures")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; give the inputs' range, or neither")
        return self


class Attacked(Strategy):
    """What strategies with an attack on the student share."""

    stage: ClassVar[int] = 1
    attack: Attack = Attack()
    clean_share: float = Field(
        default=0.0, ge=0, lt=1, description="of the loss on the samples as they were; 0: they are not trained on"
    )


class Adversarial(Attacked):
    """Train on adversarial examples: with the clean teacher's answers (ARD, Goldblum et al. 2020, arXiv:1905.09747)."""

    policy: ClassVar[str] = "kdc.distill.strategies.adversarial:AdversarialInputs"
    kind: Literal["adversarial"] = "adversarial"
    against: Literal["labels", "student", "teacher"] = Field(
        default="labels",
        description="what the attack leads away from: the labels, the student's own clean answer "
        "(TRADES, arXiv:1901.08573) or the teacher's clean answer (RSLAD, arXiv:2108.07969)",
    )
    teacher_sees: Literal["clean", "adversarial"] = "clean"


class LowTemperature(Attacked):
    """Adversarial training on a low-temperature teacher's soft labels. Source: LTD, Chen & Lee 2021, arXiv:2111.02331."""

    policy: ClassVar[str] = "kdc.distill.strategies.adversarial:AdversarialInputs"
    kind: Literal["ltd"] = "ltd"
    against: Literal["labels", "student", "teacher"] = "teacher"
    teacher_sees: ClassVar[Literal["clean", "adversarial"]] = "clean"
    teacher_temperature: float = Field(
        default=2.0, gt=0, description="of the teacher alone: leave the objective's at 1; the default is ours"
    )


class TwoTeachers(Strategy):
    """A clean teacher for samples, a robust one for adversarial ones, in balance. Source: MTARD, arXiv:2306.16170."""

    policy: ClassVar[str] = "kdc.distill.strategies.adversarial_balance:BalancedTeachers"
    stage: ClassVar[int] = 1
    kind: Literal["mtard"] = "mtard"
    attack: Attack = Attack()
    clean: int = Field(default=0, ge=0, description="number of the clean teacher in training.teachers")
    robust: int = Field(default=1, ge=0, description="number of the robust one")
    weight_rate: float = Field(default=0.025, ge=0, le=1, description="of the balance of losses, a step")
    temperature_rate: float = Field(default=1e-3, ge=0, description="of the balance of entropies, a step")
    highest_temperature: float = Field(default=10.0, ge=1)

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.clean == self.robust:
            raise ValueError(f"teacher {self.clean} cannot be both the clean and the robust one; name two teachers")
        return self
