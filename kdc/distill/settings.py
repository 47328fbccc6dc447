"""Settings of the training loop, readable without torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kdc.distill.answer_settings import AnswerForm
from kdc.distill.feature_settings import AnyFeatureObjective
from kdc.distill.feature_settings import Hints as Hints  # noqa: PLC0414 - found beside the other objectives
from kdc.distill.logit_settings import Correlations, Level, OnOutputs, OutputObjective
from kdc.distill.logit_settings import SoftTargets as SoftTargets  # noqa: PLC0414 - found beside the other objectives
from kdc.distill.optimizer_settings import AdamW, AnyOptimizer
from kdc.distill.shift_settings import Shifted
from kdc.distill.strategy_settings.adversarial import Adversarial, LowTemperature, TwoTeachers
from kdc.distill.strategy_settings.discriminator import Discriminator
from kdc.distill.strategy_settings.domains import ClassGaps
from kdc.distill.strategy_settings.hard import HardAugmentation
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.strategy_settings.layered import Layered
from kdc.distill.strategy_settings.mixing import StudentMixup
from kdc.distill.strategy_settings.online import RoleChange
from kdc.distill.strategy_settings.regions import RegionLabels
from kdc.distill.strategy_settings.several import Combined, OfSeveral, ReinforcedTeachers, SimilarTasks, TeacherDropping
from kdc.distill.strategy_settings.unlabelled import Unlabelled
from kdc.distill.strategy_settings.views import AnyTransform
from kdc.distill.strategy_settings.weights import NoisyLabels, PermutedAnswers, TeacherConfidence, Trilateral
from kdc.distill.teacher_settings import TeacherSource


class HardLabels(BaseModel, frozen=True, extra="forbid"):
    """The task's own loss on the labels (cross-entropy for classification)."""

    level: ClassVar[Level] = "probabilities"
    kind: Literal["labels"] = "labels"
    weight: float = Field(default=0.1, ge=0)


Objective = Annotated[HardLabels | OutputObjective | AnyFeatureObjective | Shifted, Field(discriminator="kind")]
AnyStrategy = Annotated[
    ClassGaps
    | HardAugmentation
    | PastSelf
    | RegionLabels
    | StudentMixup
    | Unlabelled
    | Combined
    | TeacherDropping
    | ReinforcedTeachers
    | SimilarTasks
    | Discriminator
    | Adversarial
    | LowTemperature
    | TwoTeachers
    | TeacherConfidence
    | PermutedAnswers
    | NoisyLabels
    | Trilateral
    | Layered
    | RoleChange,
    Field(discriminator="kind"),
]


class Training(BaseModel, frozen=True, extra="forbid"):
    """How a student is trained. The learning rate rises over `warmup` and falls on a cosine to 1% of its peak."""

    epochs: int = Field(default=30, ge=0)
    batch: int = Field(default=128, ge=1)
    optimizer: AnyOptimizer = Field(default=AdamW())
    learning_rate: float = Field(default=2e-3, gt=0, description="peak; the default is one for adamw")
    weight_decay: float = Field(default=1e-3, ge=0, description="on tensors of two and more dimensions")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    ema: float = Field(default=0.998, ge=0, lt=1, description="decay of the weights' moving average; 0: none")
    clip_norm: float = Field(default=5.0, gt=0, description="largest norm of the gradient")
    views: int = Field(
        default=4, ge=1, description="augmented views of the training split; the teacher's outputs are kept for each"
    )
    teachers: tuple[Literal["own"] | TeacherSource, ...] = Field(
        default=("own",),
        min_length=1,
        description="who is learned from: own, the recipe's teacher, or others by `build`, `onnx`, `torchscript` or `ask`",
    )
    answers: AnswerForm = Field(default=AnswerForm(), description="how the teacher's outputs are kept")
    transforms: tuple[AnyTransform, ...] = Field(
        default=(), description="of each view, in their order; for both models"
    )
    objectives: tuple[Objective, ...] = Field(default=(HardLabels(), SoftTargets(), Correlations()), min_length=1)
    strategies: tuple[AnyStrategy, ...] = Field(default=(), description="what works beside the objectives in the loop")
    calibrate: bool | None = Field(
        default=None,
        description="after the training, divide the logits by the temperature that fits the validation labels best, in "
        "the last layer's weights; null: where an objective leaves their scale open, as dist does",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="last: the averaged weights at the end; best: those after the epoch with the best metric on the "
        "validation split, the latest of equals, so that the drop that is seen there flatters by as much",
    )
    checkpoint_seconds: float = Field(default=20.0, gt=0)
    precision: Literal["float32", "bf16-mixed", "16-mixed"] = Field(
        default="float32",
        description="of the student's forward; weights and objectives stay in float32, and the teacher answers in it; "
        "16-mixed scales the loss (Micikevicius et al. 2018, arXiv:1710.03740)",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts of a batch that are seen one after another, for memory; the gradient is the whole batch's, but "
        "BatchNorm and objectives that look across the batch see a part alone",
    )
    compile: bool = Field(default=False, description="the student's forward by torch.compile, where it works")
    workers: int = Field(
        default=0,
        ge=0,
        description="threads that make the next epoch's view while one is trained on; any number gives the same result",
    )
    devices: Literal["auto", "cpu", "cuda"] = Field(
        default="cpu",
        description="auto: a GPU for each process where there are as many as that. A GPU's sums need not come out the same "
        "to the bit each time",
    )
    processes: int = Field(
        default=1,
        ge=1,
        description="that share each batch and average their gradients, on this machine; on the CPU by gloo, else a GPU "
        "each; BatchNorm and objectives that look across the batch see a process's share alone",
    )

    @property
    def calibrated(self) -> bool:
        """Whether the student is calibrated after the training."""
        if self.calibrate is not None:
            return self.calibrate
        return any(isinstance(one, OnOutputs) and one.any_scale and one.weight > 0 for one in self.objectives)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if not any(objective.weight for objective in self.objectives):
            raise ValueError("every objective has weight 0: there is nothing to learn from; give one of them a weight")
        return self

    @model_validator(mode="after")
    def _one_mixture(self) -> Self:
        mixing = [part.kind for part in (*self.transforms, *self.strategies) if part.mixes]
        if len(mixing) > 1:
            named = " and ".join(f"`{kind}`" for kind in mixing)
            raise ValueError(
                f"{named} each give a sample a share of another's label, and a sample has room for one other; leave one of "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _two_gradients_stay_here(self) -> Self:
        if self.optimizer.kind == "dot" and (self.processes > 1 or self.precision == "16-mixed"):
            raise ValueError(
                "optimizer dot keeps the teacher's gradient apart, which is neither added up over processes nor scaled; "
                "set processes: 1 and precision: float32 or bf16-mixed"
            )
        return self

    @model_validator(mode="after")
    def _several_are_made_one(self) -> Self:
        of_several = [part.kind for part in self.strategies if isinstance(part, OfSeveral | TwoTeachers)]
        if len(self.teachers) > 1 and not of_several:
            raise ValueError(
                f"{len(self.teachers)} teachers answer, and nothing makes one target of them; add a strategy, as "
                "{kind: combined-teachers}"
            )
        return self

    @model_validator(mode="after")
    def _one_level_on_the_head(self) -> Self:
        kinds: dict[Level, str] = {}
        of_strategies = [part.objective for part in self.strategies if isinstance(part, TeacherDropping)]
        for objective in (*self.objectives, *of_strategies):
            if isinstance(objective, HardLabels | OnOutputs) and objective.weight > 0:
                kinds.setdefault(objective.level, objective.kind)
        if len(kinds) > 1:
            raise ValueError(
                f"`{kinds['logits']}` sees logits class by class and `{kinds['probabilities']}` sees probabilities: on one "
                "head the two pull it apart (Dual-Head KD, arXiv:2411.08937); give `{kinds['logits']}` a head of its own "
                f"({{kind: dual_head, loss: {{kind: {kinds['logits']}}}}}), leave one of them out, or give it weight 0"
            )
        return self
