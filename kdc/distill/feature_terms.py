"""What one pair of layers adds to the loss, for each objective that compares a student's layer with a teacher's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kdc.distill.alignment import resized
from kdc.distill.feature_settings import (
    AttentionTransfer,
    Contrastive,
    DualView,
    DynamicContrastive,
    Hints,
    MaskedRecovery,
    MultiScaleContrastive,
    MutualInformation,
    OrthogonalMatch,
    Paired,
    PixelContrastive,
    Relational,
    SimpleRecipe,
    TokenRelations,
    Transport,
)
from kdc.distill.memory import Remembering
from kdc.distill.objectives.attention import attention_transfer
from kdc.distill.objectives.contrastive import (
    local_transport,
    multi_scale,
    mutual_information,
    pixel_contrast,
)
from kdc.distill.objectives.features import dual_view, hint, masked_recovery, orthogonal_match, simple_recipe
from kdc.distill.objectives.hard_negatives import dynamic_contrastive
from kdc.distill.objectives.relations import relational_angle, relational_distance, token_context, token_graph
from kdc.distill.objectives.shapes import wide
from kdc.distill.objectives.wasserstein import critic_gap
from kdc.distill.pairing import Pair
from kdc.distill.projectors import (
    Critic,
    CrossAttentionProjector,
    LinearProjector,
    LipschitzCritic,
    OrthogonalProjector,
    Recovery,
    projector,
)

Value = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Term(nn.Module):
    """An objective on one pair of aligned features, each first through a module of its own that trains along."""

    def __init__(self, value: Value, student: nn.Module | None = None, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.value = value
        self.student, self.teacher = student or nn.Identity(), teacher or nn.Identity()

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] of both -> [batch]; nothing flows back into the teacher."""
        value: torch.Tensor = self.value(self.student(wide(student)), self.teacher(wide(teacher.detach())))
        return value


class _Pooled(nn.Module):
    """The mean over positions, then a linear map."""

    def __init__(self, then: nn.Module | None = None) -> None:
        super().__init__()
        self.then = then or nn.Identity()

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.then(feature.flatten(2).mean(2))
        return pooled


class Answering(nn.Module):
    """A branch that answers as the model does, from the mean over an inner layer's positions."""

    def __init__(self, channels: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)  # an inner layer's features have any size
        self.head = LinearProjector(channels, classes, generator)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] -> logits [batch, classes]."""
        logits: torch.Tensor = self.head(self.norm(wide(feature).flatten(2).mean(2)))
        return logits


class _Mutual(nn.Module):
    """The mutual information's critic is one module of both features, not one of each."""

    def __init__(self, settings: MutualInformation, critic: Critic) -> None:
        super().__init__()
        self.critic, self.alpha = critic, settings.alpha

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] of both -> [batch]."""
        features = (wide(feature).flatten(2).mean(2) for feature in (student, teacher.detach()))
        scores, log_baseline = self.critic(*features)
        return mutual_information(scores, log_baseline, self.alpha)


class _TwoViews(nn.Module):
    """ScaleKD's dual view: the features as they are and without their constant part, each through its own projector."""

    def __init__(self, settings: DualView, pair: Pair, generator: torch.Generator) -> None:
        super().__init__()
        self.weights = (settings.whole, 0.0), (0.0, settings.alternating)
        s, t, kind = pair.student.channels, pair.teacher.channels, settings.projector
        self.projectors = nn.ModuleList(
            CrossAttentionProjector(s, t, pair.positions, pair.positions, generator)
            if kind == "attention"
            else projector(kind, s, t, generator)
            for _ in self.weights
        )

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] of both -> [batch]."""
        student, teacher = wide(student), wide(teacher.detach())
        views = [
            dual_view(made(student), teacher, *weights)
            for made, weights in zip(self.projectors, self.weights, strict=True)
        ]
        return views[0] + views[1]


class _Transported(nn.Module):
    """WCoRD: a critic over the whole training, which is one module of both features, and a plan within the batch."""

    def __init__(
        self, settings: Transport, critic: LipschitzCritic | None, student: nn.Module, teacher: nn.Module
    ) -> None:
        super().__init__()
        self.settings, self.critic, self.student, self.teacher = settings, critic, student, teacher

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] of both -> [batch]."""
        s, t = self.student(wide(student)), self.teacher(wide(teacher.detach()))
        value = self.settings.local * local_transport(s, t, self.settings.entropy, self.settings.iterations)
        return value if self.critic is None else value + self.settings.whole * critic_gap(self.critic(s, t))


def term(settings: Paired, pair: Pair, population: int, generator: torch.Generator) -> nn.Module:
    """The settings' objective on a pair. population: examples in the training split; generator: of first weights."""
    s, t = pair.student.channels, pair.teacher.channels
    inside: nn.Module

    match settings:
        case Hints():
            return Term(hint, projector(settings.projector, s, t, generator))
        case AttentionTransfer():
            return Term(lambda a, b: attention_transfer(a, b, settings.power))
        case OrthogonalMatch():
            inside = _Pooled(OrthogonalProjector(s, t, generator))
            return Term(lambda a, b: orthogonal_match(a, b, settings.normalisation), inside, _Pooled())
        case SimpleRecipe():
            inside = _Pooled(LinearProjector(s, t, generator))
            return Term(lambda a, b: simple_recipe(a, b, settings.power), inside, _Pooled())
        case Relational():
            return Term(lambda a, b: _relational(settings, a, b), _Pooled(), _Pooled())
        case TokenRelations():
            return Term(lambda a, b: _tokens(settings, a, b))
        case MaskedRecovery():
            return Term(masked_recovery, Recovery(s, t, pair.dimensions, settings.masked, generator))
        case DualView():
            return _TwoViews(settings, pair, generator)
        case _:
            return _contrast(settings, s, t, population, generator)


def _contrast(settings: Paired, s: int, t: int, population: int, generator: torch.Generator) -> nn.Module:
    """The objectives that tell examples apart."""

    def embeddings(width: int) -> tuple[nn.Module, nn.Module]:
        return tuple(_Pooled(LinearProjector(channels, width, generator)) for channels in (s, t))  # type: ignore[return-value]

    match settings:
        case Contrastive():
            return Remembering(settings, population, *embeddings(settings.width))
        case DynamicContrastive():
            return Term(
                lambda a, b: dynamic_contrastive(a, b, settings.hardest, settings.temperature, settings.focus),
                *embeddings(settings.width),
            )
        case MultiScaleContrastive():
            inside = LinearProjector(s, t, generator)
            return Term(lambda a, b: multi_scale(a, b, settings.scales, settings.temperature), inside)
        case PixelContrastive():
            return Term(lambda a, b: pixel_contrast(a, b, settings.temperature), LinearProjector(s, t, generator))
        case Transport():
            critic = LipschitzCritic(settings.width, generator) if settings.whole else None
            return _Transported(settings, critic, *embeddings(settings.width))
        case MutualInformation():
            return _Mutual(settings, Critic(s, t, settings.width, generator))
        case _:
            raise AssertionError(f"{type(settings).__name__} has no term")


def _relational(settings: Relational, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    distance = settings.distance * relational_distance(student, teacher)
    return distance + settings.angle * relational_angle(student, teacher)


def _tokens(settings: TokenRelations, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    within = settings.within * token_context(student, teacher, settings.temperature)
    tokens = settings.side**2 if student.dim() == 3 else settings.side
    few = tuple(min(tokens, size) for size in student.shape[2:])
    across = token_graph(resized(student, few), resized(teacher, few), settings.temperature)
    return within + settings.across * across
