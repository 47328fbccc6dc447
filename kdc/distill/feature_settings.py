"""Settings of the objectives on inner features, readable without torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kdc.distill.logit_settings import Binary, BinaryNorm

Projector = Literal["orthogonal", "linear"]


class FeatureObjective(BaseModel, frozen=True, extra="forbid"):
    """What every objective on features has: it needs the insides of the student, and so cannot train an exit alone."""

    policy: ClassVar[str] = "kdc.distill.feature_policy:Features"
    """module:class made of (settings, student, context), imported when a training begins."""
    inside_teacher: ClassVar[bool] = True
    """Whether it needs the teacher's inner layers, not its answers alone."""
    bridges: ClassVar[bool] = True
    """Whether student and teacher may have other classes."""

    weight: float = Field(default=1.0, ge=0, description="of the mean over the pairs")


class Paired(FeatureObjective, frozen=True, extra="forbid"):
    """An objective that compares layers of the student with layers of the teacher."""

    layers: dict[str, str] = Field(
        default={}, description="student's module path: teacher's module path; empty: paired by CKA, depth and shape"
    )


class AlongDepth(Paired, frozen=True, extra="forbid"):
    """An objective with several pairs, spread over the student's depth; the others compare the last layers."""

    pairs: int = Field(default=3, ge=1, description="how many layers are paired when `layers` is empty")


class Hints(AlongDepth, frozen=True, extra="forbid"):
    """Match the teacher's inner features through a projector. Source: FitNets, Romero et al. 2015, arXiv:1412.6550."""

    kind: Literal["hints"] = "hints"
    pairs: int = Field(default=2, ge=1, description="how many layers are paired when `layers` is empty")
    projector: Projector = Field(
        default="orthogonal", description="orthogonal: it keeps the student's inner products (VkD, arXiv:2403.06213)"
    )


class AttentionTransfer(AlongDepth, frozen=True, extra="forbid"):
    """Match where activations are large. Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; weight of its code."""

    kind: Literal["attention_transfer"] = "attention_transfer"
    weight: float = Field(default=1000.0, ge=0, description="of the mean over the pairs")
    power: float = Field(default=2.0, gt=0, description="of the activations")


class ClassAttention(Paired, frozen=True, extra="forbid"):
    """Match the class activation maps of the last layers. Source: CAT-KD, Guo et al. 2023, CVPR; defaults of its code."""

    bridges: ClassVar[bool] = False
    kind: Literal["class_attention"] = "class_attention"
    weight: float = Field(default=15.0, ge=0)
    resolution: int = Field(default=2, ge=1, description="height and width of the maps that are compared")
    normalise: bool = Field(default=True, description="scale each class's map to length 1")


class OrthogonalMatch(Paired, frozen=True, extra="forbid"):
    """Match pooled features through an orthogonal projector. Source: VkD, Miles et al. 2024, arXiv:2403.06213."""

    kind: Literal["vkd"] = "vkd"
    normalisation: Literal["layer", "standardise", "whiten", "none"] = Field(
        default="layer", description="of the teacher's features: `layer` to classify, `whiten` to generate"
    )


class SimpleRecipe(Paired, frozen=True, extra="forbid"):
    """Match standardised pooled features by the log of a sum of powers. Source: SRD, arXiv:2303.11098."""

    kind: Literal["srd"] = "srd"
    power: float = Field(default=4.0, ge=1)


class Relational(Paired, frozen=True, extra="forbid"):
    """Match distances and angles between the batch's examples. Source: RKD, Park et al. 2019, arXiv:1904.05068."""

    kind: Literal["rkd"] = "rkd"
    distance: float = Field(default=25.0, ge=0, description="weight of the distances")
    angle: float = Field(default=50.0, ge=0, description="weight of the angles")


class TokenRelations(Paired, frozen=True, extra="forbid"):
    """Match relations between tokens within and across examples. Source: TRG, Zhang et al. 2023, arXiv:2306.12442."""

    kind: Literal["token_relations"] = "token_relations"
    within: float = Field(default=1.0, ge=0, description="weight of relations within an example")
    across: float = Field(default=1.0, ge=0, description="weight of relations to the other examples' tokens")
    temperature: float = Field(default=1.0, gt=0)
    side: int = Field(
        default=4, ge=1, description="maps are pooled to side x side tokens for relations across examples"
    )


class AttentionRelations(Paired, frozen=True, extra="forbid"):
    """Match relations of queries, keys and values of attention. Source: MiniLMv2, Wang et al. 2021, arXiv:2012.15828."""

    kind: Literal["attention_relations"] = "attention_relations"
    relation_heads: int | None = Field(
        default=None, ge=1, description="null: the largest number up to 48 that divides both models' channels"
    )


class Contrastive(Paired, frozen=True, extra="forbid"):
    """Tell pairs of one example from pairs of two. Source: CRD, Tian et al. 2020, arXiv:1910.10699."""

    kind: Literal["crd"] = "crd"
    weight: float = Field(default=0.8, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    width: int = Field(default=128, ge=1, description="of the space in which both embeddings are compared")
    memory: int = Field(
        default=0,
        ge=0,
        description="earlier examples that are negatives too, never more than the training split has; few steps need none",
    )


class DynamicContrastive(Paired, frozen=True, extra="forbid"):
    """Tell an example from those the teacher finds near. Source: DCD, Rao et al. 2022, arXiv:2207.01426, its abstract."""

    kind: Literal["dynamic_contrastive"] = "dynamic_contrastive"
    temperature: float = Field(default=0.07, gt=0)
    hardest: int = Field(default=8, ge=1, description="how many of the batch's other examples")
    focus: float = Field(default=1.0, ge=0, description="how much less an example counts once it is learned")
    width: int = Field(default=128, ge=1, description="of the space in which both embeddings are compared")


class MultiScaleContrastive(Paired, frozen=True, extra="forbid"):
    """Contrast regions of several scales within a batch. Source: Wang et al. 2025, arXiv:2502.05835, as in the abstract."""

    kind: Literal["multi_scale_crd"] = "multi_scale_crd"
    temperature: float = Field(default=0.07, gt=0)
    scales: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4), min_length=1)


class PixelContrastive(Paired, frozen=True, extra="forbid"):
    """Contrast the maps place by place. Source: PCD, Huang and Guo 2023, arXiv:2211.00218, as in the abstract."""

    kind: Literal["pixel_contrast"] = "pixel_contrast"
    temperature: float = Field(default=0.2, gt=0)


class Transport(Paired, frozen=True, extra="forbid"):
    """Wasserstein distances: a critic's, and the batch's plan. Source: WCoRD, Chen et al. 2021, arXiv:2012.08674."""

    kind: Literal["wcord"] = "wcord"
    whole: float = Field(default=1.0, ge=0, description="weight of the critic's distance, between pairs of 1 and of 2")
    local: float = Field(default=1.0, ge=0, description="weight of moving the batch's features onto the teacher's")
    entropy: float = Field(default=0.05, gt=0)
    iterations: int = Field(default=50, ge=1)
    width: int = Field(default=128, ge=1, description="of the space in which both embeddings are compared")


class MutualInformation(Paired, frozen=True, extra="forbid"):
    """Raise a bound of the mutual information of both features. Source: MI-alpha, Distiller, arXiv:2109.11105."""

    kind: Literal["mi_alpha"] = "mi_alpha"
    alpha: float = Field(default=0.9, ge=0, le=1, description="1: small variance (InfoNCE); 0: small bias")
    width: int = Field(default=128, ge=1, description="of the critic's hidden layers")


class MaskedRecovery(Paired, frozen=True, extra="forbid"):
    """Recover the teacher's features from masked ones of the student. Source: MGD, Yang et al. 2022, arXiv:2205.01529."""

    kind: Literal["masked_recovery"] = "masked_recovery"
    weight: float = Field(default=7e-5, ge=0)
    masked: float = Field(default=0.15, ge=0, lt=1, description="share of the student's channels that are masked")


class DualView(Paired, frozen=True, extra="forbid"):
    """Match features as they are and without their constant part. Source: ScaleKD, Fan et al. 2024, arXiv:2411.06786."""

    kind: Literal["dual_view"] = "dual_view"
    whole: float = Field(default=0.08, ge=0)
    alternating: float = Field(default=0.06, ge=0)
    projector: Literal["orthogonal", "linear", "attention"] = Field(
        default="orthogonal", description="attention: queries at the teacher's positions attend to the student's"
    )


class CrossArchitecture(FeatureObjective, frozen=True, extra="forbid"):
    """Inner features of the student answer like the teacher. Source: OFA-KD, Hao et al. 2023, arXiv:2310.19444."""

    inside_teacher: ClassVar[bool] = False
    bridges: ClassVar[bool] = False
    kind: Literal["ofa"] = "ofa"
    layers: tuple[str, ...] = Field(default=(), description="student's module paths; empty: `answers` along its depth")
    answers: int = Field(default=4, ge=1, description="how many of the student's layers answer when `layers` is empty")
    gamma: float = Field(default=1.0, gt=0, description="enhances the label's share of the teacher's answer")
    temperature: float = Field(default=1.0, gt=0)


class DualHead(FeatureObjective, frozen=True, extra="forbid"):
    """A loss on logits trains a second head, thrown away after. Source: Dual-Head KD, Yang et al. 2024, arXiv:2411.08937.

    So it goes with labels, `kd` and others that see probabilities on the student's own head.
    """

    policy: ClassVar[str] = "kdc.distill.second_head:SecondHead"
    inside_teacher: ClassVar[bool] = False
    kind: Literal["dual_head"] = "dual_head"
    weight: float = Field(default=1.0, ge=0, description="times that of the loss")
    loss: Annotated[BinaryNorm | Binary, Field(discriminator="kind")] = BinaryNorm()


class Subclasses(FeatureObjective, frozen=True, extra="forbid"):
    """Few classes made many along the teacher's embeddings. Source: LELP, Loo et al. 2024, arXiv:2409.20449.

    A second head learns them and is thrown away after; it goes with `kd` or others on the student's own head.
    """

    policy: ClassVar[str] = "kdc.distill.subclass_policy:SubclassHead"
    bridges: ClassVar[bool] = False
    kind: Literal["lelp"] = "lelp"
    subclasses: int = Field(default=4, ge=2, description="of each class")
    sharpness: float = Field(default=1.0, ge=0, description="how clearly an example belongs to one of them; ours")
    temperature: float = Field(default=1.0, gt=0)
    samples: int = Field(
        default=8192, ge=2, description="training examples that the directions are found from, at most"
    )


class TaskAware(AlongDepth, frozen=True, extra="forbid"):
    """Match what task-trained filters let through. Source: TED, Liang et al. 2023, arXiv:2210.01351."""

    policy: ClassVar[str] = "kdc.distill.task_filters:TaskFilters"
    kind: Literal["ted"] = "ted"
    weight: float = Field(default=20.0, ge=0, description="of the matching; its code's settings go from 10 to 7500")
    filters: float = Field(
        default=0.2, gt=0, lt=1, description="share of the steps in which the filters learn the task"
    )
    width: int | None = Field(default=None, ge=1, description="of the filters; null: as many as the teacher's channels")


class TaskUnits(AlongDepth, frozen=True, extra="forbid"):
    """Match the teacher's most task-relevant channels. Source: Flex-KD, arXiv:2507.10155, as in the abstract."""

    policy: ClassVar[str] = "kdc.distill.unit_selection:SelectedUnits"
    bridges: ClassVar[bool] = False
    kind: Literal["task_units"] = "task_units"
    samples: int = Field(default=256, ge=1, description="training examples that the relevance is measured on, at most")


class ModuleWise(AlongDepth, frozen=True, extra="forbid"):
    """Modules of the student learn alone in a small meta model. Source: m2mKD, Lo et al. 2024, arXiv:2402.16918."""

    policy: ClassVar[str] = "kdc.distill.module_wise:ModuleToModule"
    kind: Literal["m2mkd"] = "m2mkd"
    meta: float = Field(default=0.2, gt=0, lt=1, description="share of the steps in which the meta model learns")
    alone: float = Field(default=0.6, gt=0, le=1, description="share of the steps after which no module learns alone")
    width: int = Field(default=64, ge=1, description="channels of the meta model")
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _some_steps_for_the_modules(self) -> Self:
        if self.alone <= self.meta:
            raise ValueError(f"`alone` is {self.alone:g} and `meta` {self.meta:g}: set `alone` above `meta`")
        return self


AnyFeatureObjective = (
    Hints
    | AttentionTransfer
    | ClassAttention
    | OrthogonalMatch
    | SimpleRecipe
    | Relational
    | TokenRelations
    | AttentionRelations
    | Contrastive
    | DynamicContrastive
    | MultiScaleContrastive
    | PixelContrastive
    | Transport
    | MutualInformation
    | MaskedRecovery
    | DualView
    | CrossArchitecture
    | DualHead
    | Subclasses
    | TaskAware
    | TaskUnits
    | ModuleWise
)
