"""Settings of the objectives on a model's outputs, readable without torch; each names its function.

To add one: its function in a file of `objectives/`, its class here and in `OutputObjective`, its row in
`tests/distill/objectives/test_logit_laws.py`. One that does more than call its function
names its `policy`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

Level = Literal["logits", "probabilities"]
"""How a loss sees the outputs: class by class, each logit with an optimum of its own (a sigmoid), or all together,
through a softmax or another normalisation. Source: Yang et al. 2024 (Dual-Head KD), arXiv:2411.08937."""


class OnOutputs(BaseModel, frozen=True, extra="forbid"):
    """An objective on the outputs of student and teacher, and on the labels where `labels` says so.

    Its fields, but for `kind` and `weight`, are the keyword arguments of its function.
    """

    function: ClassVar[str]
    """module:function, imported when a training begins, so that a recipe is read without torch."""
    labels: ClassVar[bool] = False
    level: ClassVar[Level] = "probabilities"
    bridges: ClassVar[bool] = False
    """Whether student and teacher may have other classes."""
    inside_teacher: ClassVar[bool] = False
    any_scale: ClassVar[bool] = False
    """Whether it sees the student's logits by their order and proportions alone, so that their scale is left open."""
    policy: ClassVar[str | None] = None
    """module:class made of (settings, student, context), for an objective that does more than call its function."""

    weight: float = Field(default=1.0, ge=0)

    def arguments(self) -> dict[str, Any]:
        """The function's keyword arguments."""
        return {name: value for name, value in self if name not in ("kind", "weight")}


class SoftTargets(OnOutputs):
    """Kullback-Leibler divergence from the teacher's softened outputs. Source: Hinton et al. 2015, arXiv:1503.02531."""

    function: ClassVar[str] = "kdc.distill.objectives.logits:soft_targets"
    kind: Literal["kd"] = "kd"
    weight: float = Field(default=0.9, ge=0)
    temperature: float = Field(default=4.0, gt=0)


class ReverseKL(OnOutputs):
    """Divergence the other way round: may leave out modes. Source: MiniLLM, Gu et al. 2024, arXiv:2306.08543."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:reverse_kl"
    kind: Literal["reverse-kl"] = "reverse-kl"
    temperature: float = Field(default=1.0, gt=0)


class JensenShannon(OnOutputs):
    """Divergence of both from their mixture. Source: Agarwal et al. 2024, arXiv:2306.13649; Lin 1991."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:jensen_shannon"
    kind: Literal["jensen-shannon"] = "jensen-shannon"
    temperature: float = Field(default=1.0, gt=0)
    teacher_share: float = Field(default=0.5, gt=0, lt=1, description="of the mixture; nearer to 0: more like `kd`")


class AlphaDivergence(OnOutputs):
    """The family between `reverse-kl` (alpha 0) and `kd` (alpha 1). Source: AlphaNet, Wang et al. 2021, arXiv:2102.07954."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:alpha_divergence"
    kind: Literal["alpha"] = "alpha"
    temperature: float = Field(default=1.0, gt=0)
    alpha: float = Field(default=0.5, ge=0, le=1, description="0: reverse-kl, 1: kd")


class AdaptiveAlpha(OnOutputs):
    """The larger of two clipped alpha-divergences. Source: AlphaNet, Wang et al. 2021, arXiv:2102.07954."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:adaptive_alpha"
    kind: Literal["adaptive-alpha"] = "adaptive-alpha"
    temperature: float = Field(default=1.0, gt=0)
    alpha_low: float = Field(default=-1.0, description="the order that punishes a student that is not sure enough")
    alpha_high: float = Field(default=1.0, description="the order that punishes one that is too sure")
    clip: float = Field(default=5.0, gt=1, description="largest (p/q)^alpha")


class SkewKL(OnOutputs):
    """Divergence from a mixture with some of the teacher: bounded. Source: DistiLLM, Ko et al. 2024, arXiv:2402.03898."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:skew_kl"
    kind: Literal["skew-kl"] = "skew-kl"
    temperature: float = Field(default=1.0, gt=0)
    skew: float = Field(default=0.1, gt=0, lt=1, description="the teacher's share of the mixture")


class SkewReverseKL(OnOutputs):
    """The reverse, from a mixture with some of the student. Source: DistiLLM, Ko et al. 2024, arXiv:2402.03898."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:skew_reverse_kl"
    kind: Literal["skew-reverse-kl"] = "skew-reverse-kl"
    temperature: float = Field(default=1.0, gt=0)
    skew: float = Field(default=0.1, gt=0, lt=1, description="the student's share of the mixture")


class BalancedKL(OnOutputs):
    """Both divergences, weighted by which of the two is surer. Source: BD-KD, Amara et al. 2022, arXiv:2212.12965."""

    function: ClassVar[str] = "kdc.distill.objectives.divergences:balanced_kl"
    kind: Literal["bd-kd"] = "bd-kd"
    temperature: float = Field(default=4.0, gt=0)
    emphasis: float = Field(default=2.0, ge=1, description="weight of the divergence that mends the confidence; ours")


class Decoupled(OnOutputs):
    """Target class and other classes, each with its weight. Source: DKD, Zhao et al. 2022, arXiv:2203.08679."""

    function: ClassVar[str] = "kdc.distill.objectives.decoupled:dkd"
    labels: ClassVar[bool] = True
    kind: Literal["dkd"] = "dkd"
    temperature: float = Field(default=4.0, gt=0)
    alpha: float = Field(default=1.0, ge=0, description="weight of target against others")
    beta: float = Field(default=8.0, ge=0, description="weight of the others among themselves")


class Standardised(OnOutputs):
    """`kd` on z-scores of the logits. Source: Sun et al. 2024, arXiv:2403.01427."""

    function: ClassVar[str] = "kdc.distill.objectives.normalised:standardised_kd"
    any_scale: ClassVar[bool] = True
    kind: Literal["standardised"] = "standardised"
    weight: float = Field(default=9.0, ge=0, description="the paper's, beside a weight of 0.1 on labels")
    temperature: float = Field(default=2.0, gt=0)


class LumiNet(OnOutputs):
    """`kd` on logits standardised over the batch. Source: Hossain et al. 2023, arXiv:2310.03669."""

    function: ClassVar[str] = "kdc.distill.objectives.normalised:luminet"
    any_scale: ClassVar[bool] = True
    kind: Literal["luminet"] = "luminet"
    temperature: float = Field(default=4.0, gt=0)


class Correlations(OnOutputs):
    """Correlations over classes and over examples. Source: DIST, Huang et al. 2022, arXiv:2205.10536."""

    function: ClassVar[str] = "kdc.distill.objectives.normalised:dist"
    any_scale: ClassVar[bool] = True
    kind: Literal["dist"] = "dist"
    temperature: float = Field(default=4.0, gt=0)
    beta: float = Field(default=2.0, ge=0, description="weight of an example's classes")
    gamma: float = Field(default=2.0, ge=0, description="weight of a class's examples")


class PlackettLuce(OnOutputs):
    """Likelihood of the teacher's ranking, the label first. Source: PLD, Bassam et al. 2025, arXiv:2506.12542."""

    function: ClassVar[str] = "kdc.distill.objectives.ranking:plackett_luce"
    labels: ClassVar[bool] = True
    kind: Literal["pld"] = "pld"
    temperature: float = Field(default=1.0, gt=0, description="of the teacher, whose probabilities weigh the ranks")


class TopScaled(OnOutputs):
    """Cosines of the teacher's amplified top classes. Source: TopKD, Wang & Zhou 2025, arXiv:2508.04539."""

    function: ClassVar[str] = "kdc.distill.objectives.ranking:top_scaled"
    any_scale: ClassVar[bool] = True
    labels: ClassVar[bool] = True
    kind: Literal["topkd"] = "topkd"
    top: int = Field(default=5, ge=1, description="classes in a group; never more than half of all")
    scale: float = Field(default=0.5, ge=0, description="how much the largest logit is amplified; ours")
    alpha: float = Field(default=1.0, ge=0, description="weight of the largest; ours")
    beta: float = Field(default=1.0, ge=0, description="weight of the smallest; ours")
    temperature: float = Field(default=0.1, gt=0, description="of the contrast; ours")


class Sinkhorn(OnOutputs):
    """Transport of the batch's outputs onto the teacher's. Source: SinKD, Cui et al. 2024, arXiv:2402.17110."""

    function: ClassVar[str] = "kdc.distill.objectives.transport:sinkhorn"
    kind: Literal["sinkhorn"] = "sinkhorn"
    temperature: float = Field(default=2.0, gt=0)
    blur: float = Field(default=0.1, gt=0, description="weight of the plan's entropy, in units of cost (0 to 2)")
    iterations: int = Field(default=20, ge=1)


class Binary(OnOutputs):
    """Each class by a sigmoid of its own, as dense detectors score. Source: BCKD, Yang et al. 2023, arXiv:2308.14286."""

    function: ClassVar[str] = "kdc.distill.objectives.binary:binary"
    level: ClassVar[Level] = "logits"
    kind: Literal["bckd"] = "bckd"
    focus: float = Field(default=1.0, ge=1, description="power of the distance that weighs each class")


class BinaryNorm(OnOutputs):
    """Each class's difference of logits. Source: Dual-Head KD, Yang et al. 2024, arXiv:2411.08937, BinaryKL-Norm."""

    function: ClassVar[str] = "kdc.distill.objectives.binary:binary_norm"
    level: ClassVar[Level] = "logits"
    kind: Literal["binary-norm"] = "binary-norm"
    temperature: float = Field(default=2.0, gt=0)


class SortedProbabilities(OnOutputs):
    """Sorted probabilities, for outputs numbered otherwise. Source: ULD, Boizard et al. 2024, arXiv:2402.12030."""

    function: ClassVar[str] = "kdc.distill.objectives.vocabulary:uld"
    bridges: ClassVar[bool] = True
    kind: Literal["uld"] = "uld"
    temperature: float = Field(default=1.0, gt=0)


class Likelihoods(OnOutputs):
    """Likelihoods of spans of tokens. Source: ALM, Minixhofer et al. 2025, arXiv:2503.20083; temperature of its code.

    For outputs [batch, tokens, vocabulary] and labels [batch, tokens], so not for classification.
    """

    function: ClassVar[str] = "kdc.distill.objectives.vocabulary:likelihoods_of_labels"
    labels: ClassVar[bool] = True
    kind: Literal["alm"] = "alm"
    span: int = Field(default=1, ge=1, description="tokens in a span")
    temperature: float = Field(default=100.0, gt=0, description="of a span's likelihood as a coin's")


class Predictions(OnOutputs):
    """The teacher's first classes alone, as a black box tells them. Source: as in MEKD, Ma et al. 2024, arXiv:2205.10490."""

    function: ClassVar[str] = "kdc.distill.objectives.predictions:predictions"
    kind: Literal["predictions"] = "predictions"
    top: int = Field(default=1, ge=1, description="how many classes the teacher names, with their probabilities")
    hard: bool = Field(default=False, description="the likeliest class only, without a probability")


class Emulated(OnOutputs):
    """Answers compared as the inputs they stand for. Source: MEKD, Ma et al. 2024, arXiv:2205.10490, as in the abstract."""

    function: ClassVar[str] = "kdc.distill.emulation:input_distance"
    policy: ClassVar[str | None] = "kdc.distill.emulation:Emulation"
    kind: Literal["mekd"] = "mekd"
    hard: bool = Field(default=False, description="the teacher's likeliest class only, without a probability")
    generator: float = Field(default=0.3, gt=0, lt=1, description="share of the steps in which the generator learns")
    width: int = Field(default=256, ge=1, description="of the generator's hidden layers")


class MovingTarget(OnOutputs):
    """A target on its way from student to teacher. Source: TAID, Shing et al. 2025, arXiv:2501.16937.

    Its fields tell the way; the function takes the share that the way has reached.
    """

    function: ClassVar[str] = "kdc.distill.objectives.moving:taid"
    kind: Literal["taid"] = "taid"
    start: float = Field(default=0.4, ge=0, lt=1, description="the teacher's share at first")
    end: float = Field(default=1.0, gt=0, le=1, description="and at last")
    rate: float = Field(default=5e-4, ge=0, le=1, description="by how much of the way a step may hurry on")
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the average of the loss's relative decrease")


OutputObjective = (
    SoftTargets
    | ReverseKL
    | JensenShannon
    | AlphaDivergence
    | AdaptiveAlpha
    | SkewKL
    | SkewReverseKL
    | BalancedKL
    | Decoupled
    | Standardised
    | LumiNet
    | Correlations
    | PlackettLuce
    | TopScaled
    | Sinkhorn
    | Binary
    | BinaryNorm
    | SortedProbabilities
    | Likelihoods
    | Predictions
    | Emulated
    | MovingTarget
)
