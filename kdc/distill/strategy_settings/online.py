"""Settings of strategies in which networks learn together."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdc.distill.strategy_settings.base import Strategy


class RoleChange(Strategy):
    """Copies of the student learn beside it; the best of the group teach the others. Source: ORC, arXiv:2206.01186."""

    policy: ClassVar[str] = "kdc.distill.strategies.online:RoleChanges"
    kind: Literal["orc"] = "orc"
    weight: float = Field(default=1.0, ge=0, description="of the rounds' lessons, beside the labels")
    peers: int = Field(default=3, ge=1, description="copies of the student that train along")
    teachers: int = Field(default=2, ge=1, description="networks of the group that teach")
    feedback: float = Field(default=1.0, ge=0, description="weight of the students' errors in the teachers' own lesson")
    private_steps: int = Field(default=1, ge=0, description="of a round, in which teachers learn from students' errors")
    joint_steps: int = Field(default=1, ge=1, description="of a round, in which they teach; then roles change")
    temperature: float = Field(default=3.0, gt=0)
    memory: float = Field(default=0.9, ge=0, lt=1, description="of the running losses that networks are ranked by")
    fresh: float = Field(default=1.0, ge=0, le=1, description="share of the peers' first weights that is drawn anew")

    @model_validator(mode="after")
    def _somebody_learns(self) -> Self:
        if self.teachers > self.peers:
            raise ValueError(
                f"{self.teachers} teachers of {self.peers + 1} networks leave no student; give at most {self.peers}"
            )
        return self
