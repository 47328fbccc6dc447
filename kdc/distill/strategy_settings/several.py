"""Settings of strategies that learn from several teachers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdc.distill.logit_settings import OutputObjective, SoftTargets
from kdc.distill.strategy_settings.base import Strategy


class OfSeveral(Strategy):
    """A strategy that makes one target, or one loss, of several teachers' answers."""

    stage: ClassVar[int] = 2


class Combined(OfSeveral):
    """The teachers' answers as one target, their mean. Source: MEAL V2, Shen & Savvides 2020, arXiv:2009.08453."""

    policy: ClassVar[str] = "kdc.distill.strategies.several:CombinedTarget"
    kind: Literal["combined-teachers"] = "combined-teachers"
    mean_of: Literal["probabilities", "logits"] = "probabilities"
    weights: Literal["equal", "confidence", "entropy"] = Field(
        default="equal",
        description="of each sample's teachers; confidence: by their fit to its label (CA-MKD, arXiv:2201.00007); "
        "entropy: by their certainty (EBKD, Kwon et al. 2020)",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the averaged softmax: that of the objective, for one")


class TeacherDropping(OfSeveral):
    """A loss for each teacher, some left out by chance, never the largest. Source: UNIC, arXiv:2408.05088."""

    policy: ClassVar[str] = "kdc.distill.strategies.teacher_dropping:DroppedTeachers"
    kind: Literal["teacher-dropping"] = "teacher-dropping"
    objective: Annotated[OutputObjective, Field(discriminator="kind")] = Field(
        default=SoftTargets(), description="the loss of student and one teacher, with its weight"
    )
    probability: float = Field(default=0.5, ge=0, le=1, description="with which a teacher is left out for a sample")


class ReinforcedTeachers(OfSeveral):
    """A policy chooses each sample's teachers, rewarded by the student. Source: Yuan et al. 2021, arXiv:2012.06048."""

    policy: ClassVar[str] = "kdc.distill.strategies.teacher_weights:ReinforcedSelection"
    kind: Literal["reinforced-teachers"] = "reinforced-teachers"
    rate: float = Field(default=0.1, gt=0, description="step size of the policy's gradient; ours")
    follow: float = Field(
        default=1.0, gt=0, description="weight, in the reward, of how well the student follows, beside its label loss"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the averaged softmax: that of the objective, for one")


class SimilarTasks(OfSeveral):
    """Weights by how like each teacher's task is to this one. Source: DistillWeighted, arXiv:2304.12314."""

    policy: ClassVar[str] = "kdc.distill.strategies.teacher_weights:TaskSimilarity"
    kind: Literal["similar-teachers"] = "similar-teachers"
    power: float = Field(default=4.0, ge=0, description="of the similarity; 0: equal weights, large: the nearest alone")
    samples: int = Field(default=256, ge=8, description="labelled calibration samples on which tasks are compared")
    temperature: float = Field(default=1.0, gt=0, description="of the averaged softmax: that of the objective, for one")
