"""The one policy of all objectives on features: it taps both models, pairs what it finds, and takes its hooks off again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.distill.alignment import Layer, laid_out
from kdc.distill.attention_layers import AttentionTap, attention_layers
from kdc.distill.feature_settings import (
    AlongDepth,
    AttentionRelations,
    ClassAttention,
    CrossArchitecture,
    FeatureObjective,
    Paired,
)
from kdc.distill.feature_terms import Answering, term
from kdc.distill.heads import classifier, outputs_of, refuse_predictions_alone
from kdc.distill.objectives.attention import class_attention
from kdc.distill.objectives.cross_architecture import target_enhanced
from kdc.distill.objectives.relations import attention_relations
from kdc.distill.objectives.shapes import wide
from kdc.distill.pairing import Pair, pairs
from kdc.distill.policy import Batch, Policy
from kdc.distill.taps import InputTap, Tap, candidates, described

_RELATION_HEADS = 48  # of MiniLMv2's base-size students


Part = Callable[[Batch], torch.Tensor]  # one pair's values, [batch]


class Features(Policy):
    """An objective on features as a part of the loss: `weight` times the mean over its pairs."""

    def __init__(self, settings: FeatureObjective, student: nn.Module, context: Context) -> None:
        self.settings, self.student, self.context = settings, student, context
        self.runs_teacher = settings.inside_teacher
        self.kind: str = settings.kind  # type: ignore[attr-defined]  # every objective of the union has one
        if settings.inside_teacher:
            refuse_predictions_alone(context, self.kind)
        self._taps: list[Tap | AttentionTap | InputTap] = []
        self._modules: list[nn.Module] = []
        try:
            self._parts = self._made(settings)
        except BaseException:
            self.close()
            raise
        self.trained: nn.Module | None = nn.ModuleList(self._modules) if self._modules else None

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""
        return self.settings.weight * torch.stack([part(batch) for part in self._parts]).mean(0)

    def close(self) -> None:
        """Leave both models as they were found."""
        for tap in self._taps:
            tap.close()

    def _made(self, settings: FeatureObjective) -> list[Part]:
        match settings:
            case CrossArchitecture():
                return self._answers(settings)
            case AttentionRelations():
                return self._relations(settings)
            case ClassAttention():
                return self._class_maps(settings)
            case Paired():
                count = settings.pairs if isinstance(settings, AlongDepth) else None
                return self._compared(settings, self._paired(settings, count))
            case _:
                raise AssertionError(f"{type(settings).__name__} has no policy")

    def _paired(self, settings: Paired, count: int | None) -> list[Pair]:
        found = pairs(self.student, self.context.teacher, self._inputs, count, settings.layers)
        if not found:
            raise ModelError(
                f"{self.kind} found no layers of student and teacher to pair",
                do=f"name them in the recipe: objectives: [{{kind: {self.kind}, layers: {{student.path: teacher.path}}}}]",
            )
        self._tell(map(str, found))
        return found

    def _compared(self, settings: Paired, found: list[Pair]) -> list[Part]:
        """Each pair's features, aligned, through the objective's own modules."""
        terms = self._terms(settings, found)
        self._modules = [made for made in terms if any(True for _ in made.parameters())]
        student, teacher = self._tap([p.student for p in found], [p.teacher for p in found])

        def part(pair: Pair, value: nn.Module) -> Part:
            def values(batch: Batch) -> torch.Tensor:
                made: torch.Tensor = value(*pair.aligned(student[pair.student.path], teacher[pair.teacher.path]))
                return made

            return values

        return [part(pair, value) for pair, value in zip(found, terms, strict=True)]

    def _terms(self, settings: Paired, found: list[Pair]) -> list[nn.Module]:
        """The objective on each pair of aligned features."""
        generator = self.context.generator(f"{self.kind}.projectors")
        return [term(settings, pair, len(self.context.data.train), generator) for pair in found]

    def _class_maps(self, settings: ClassAttention) -> list[Part]:
        """The two classifiers' own weights, as they are at each step, on every position of the maps before them."""
        models = self.student, self.context.teacher
        classes = self._classes()
        heads = [classifier(model, classes, self.kind) for model in models]
        named = settings.layers or {
            _before(models[0], self._inputs, heads[0]).path: _before(models[1], self._inputs, heads[1]).path
        }
        found = self._paired(settings.model_copy(update={"layers": named}), None)
        student, teacher = self._tap([p.student for p in found], [p.teacher for p in found])

        def part(pair: Pair) -> Part:
            def values(batch: Batch) -> torch.Tensor:
                own = _class_map(pair.student.channels_first(student[pair.student.path]), heads[0])
                other = _class_map(pair.teacher.channels_first(teacher[pair.teacher.path]), heads[1]).detach()
                return class_attention(own, other, settings.resolution, settings.normalise)

            return values

        return [part(pair) for pair in found]

    def _relations(self, settings: AttentionRelations) -> list[Part]:
        """Queries, keys and values of the last attention layers, or of those named."""
        models = self.student, self.context.teacher
        last = [attention_layers(model)[-1:] for model in models]
        if not settings.layers and not all(last):
            raise ModelError(
                f"{self.kind} found no attention layer in the {'teacher' if last[0] else 'student'}",
                do="use hints, or another objective that compares maps",
            )
        named = settings.layers or {last[0][0]: last[1][0]}
        self._tell(f"{s} with {t}" for s, t in named.items())

        def part(student: AttentionTap, teacher: AttentionTap) -> Part:
            def values(batch: Batch) -> torch.Tensor:
                three = zip(student.vectors, teacher.vectors, strict=True)
                return torch.stack([attention_relations(s, t.detach(), _heads(settings, s, t)) for s, t in three]).sum(
                    0
                )

            return values

        made = []
        for paths in named.items():
            taps = [AttentionTap(model, path) for model, path in zip(models, paths, strict=True)]
            self._taps += taps
            made.append(part(*taps))
        return made

    def _answers(self, settings: CrossArchitecture) -> list[Part]:
        """Branches on the student's inner layers that answer as the model does; the teacher's layers are not needed."""
        probe = self._inputs
        layers = described(self.student, probe, settings.layers) if settings.layers else candidates(self.student, probe)
        if not layers:
            raise ModelError(
                f"{self.kind} found no inner layer of the student",
                do=f"name some in the recipe: objectives: [{{kind: {self.kind}, layers: [student.path]}}]",
            )
        if not settings.layers:
            count = min(settings.answers, len(layers))
            layers = [layers[(i + 1) * len(layers) // count - 1] for i in range(count)]
        self._tell(layer.path for layer in layers)
        generator, classes = self.context.generator(f"{self.kind}.projectors"), self._classes()
        branches = [Answering(layer.channels, classes, generator) for layer in layers]
        self._modules = [*branches]
        student, _ = self._tap(layers, [])

        def part(layer: Layer, branch: Answering) -> Part:
            def values(batch: Batch) -> torch.Tensor:
                logits = branch(layer.channels_first(student[layer.path]))
                return target_enhanced(logits, batch.teacher, batch.labels, settings.gamma, settings.temperature)

            return values

        return [part(layer, branch) for layer, branch in zip(layers, branches, strict=True)]

    @property
    def _inputs(self) -> tuple[torch.Tensor, ...]:
        return self.context.data.calibration.inputs

    def _tap(
        self, student: list[Layer], teacher: list[Layer]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The dictionaries in which the features of these layers will stand after each forward."""
        taps = [
            Tap(model, [layer.path for layer in layers])
            for model, layers in ((self.student, student), (self.context.teacher, teacher))
        ]
        self._taps += taps
        return taps[0].features, taps[1].features

    def _tell(self, what: Iterable[str]) -> None:
        verb = "answers from" if isinstance(self.settings, CrossArchitecture) else "pairs"
        self.context.emit(Note(f"{self.kind} {verb} {', '.join(what)}"))

    def _classes(self) -> int:
        return outputs_of(self.context.teacher, self.context, self.kind)


def _heads(settings: AttentionRelations, student: torch.Tensor, teacher: torch.Tensor) -> int:
    if settings.relation_heads is not None:
        return settings.relation_heads
    common = math.gcd(student.shape[-1], teacher.shape[-1])
    return max(heads for heads in range(1, _RELATION_HEADS + 1) if common % heads == 0)


def _before(model: nn.Module, inputs: tuple[torch.Tensor, ...], head: nn.Module) -> Layer:
    """The last map whose channels the classifier takes."""
    channels = _weight(head).shape[1]
    found = [layer for layer in candidates(model, inputs) if layer.positions and layer.channels == channels]
    if not found:
        raise ModelError(
            f"class_attention found no map of {channels} channels before the classifier of {type(model).__name__}",
            do="name the last maps: objectives: [{kind: class_attention, layers: {student.path: teacher.path}}]",
        )
    return found[-1]


def _class_map(feature: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """[batch, channels, *positions] -> [batch, classes, height, width]."""
    feature = laid_out(wide(feature))
    if feature.dim() != 4:
        raise ModelError(
            f"class_attention needs a map, or tokens that are one; found {tuple(feature.shape[2:])} positions",
            do="leave this objective out for this model",
        )
    return torch.einsum("oi,bihw->bohw", wide(_weight(head)).flatten(1), feature)


def _weight(head: nn.Module) -> torch.Tensor:
    assert isinstance(head.weight, torch.Tensor)
    return head.weight
