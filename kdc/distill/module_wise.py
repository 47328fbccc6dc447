"""m2mKD: each module of the student learns alone, in the teacher's module's place within a small model that both share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.alignment import Layer
from kdc.distill.feature_policy import Features, Part
from kdc.distill.feature_settings import FeatureObjective, ModuleWise
from kdc.distill.heads import outputs_of
from kdc.distill.input_copies import clear_hooks
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.shapes import wide
from kdc.distill.pairing import Pair, pairs
from kdc.distill.policy import Batch
from kdc.distill.projectors import LinearHead
from kdc.distill.taps import InputTap, given_to

_POOLING: dict[int, Callable[..., torch.Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


class Meta(nn.Module):
    """A patch embedding, one residual linear part a pair of modules, each on its own grid of positions, and a head."""

    def __init__(
        self, taken: int, grids: Sequence[tuple[int, ...]], width: int, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.grids = [*grids]
        self.first = LinearHead(taken, width, generator)
        self.parts = nn.ModuleList(LinearHead(width, width, generator) for _ in grids)
        self.head = LinearHead(width, classes, generator)

    def forward(self, feature: torch.Tensor, first: int, last: int | None = None) -> torch.Tensor:
        """Parts `first` to before `last`; all that is left, and the head, where `last` is None.

        Args: feature: [batch, taken, *grid], patches, where `first` is 0; else what part `first` - 1 gave.
        Returns: [batch, width, *grid], or logits [batch, classes].
        """
        for number in range(first, len(self.parts) if last is None else last):
            feature = fitted(feature, self.grids[number])
            feature = feature + _over_channels(self.parts[number], feature).relu()
        if last is not None:
            return feature
        logits: torch.Tensor = self.head(feature.flatten(2).mean(2))
        return logits

    def begun(self, patches: torch.Tensor) -> torch.Tensor:
        """[batch, taken, *grid] -> [batch, width, *grid]."""
        return _over_channels(self.first, patches).relu()


class Stitched(nn.Module):
    """One module of a model in the meta model's stream: a linear map before it and one behind it."""

    def __init__(self, module: nn.Module, taken: Layer, given: Layer, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.before = LinearHead(width, taken.channels, generator)
        self.behind = LinearHead(given.channels, width, generator)
        self.taken, self.given, self._live = taken, given, [module]  # in a list: its weights are not the stitches'
        self._bare = [_without_hooks(module)]

    def forward(self, feature: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """[batch, width, ...] -> [batch, width, *grid], through the module with its weights as they are now.

        Its running statistics stay as they were, for what passes here is not what the whole model gives it; and no hook
        of another objective sees it.
        """
        live, bare = self._live[0], self._bare[0]
        bare.train(live.training)
        weights = {**dict(live.named_parameters()), **{name: b.clone() for name, b in live.named_buffers()}}
        feature = _over_channels(self.before, fitted(feature, self.taken.positions or (1,)))
        if not self.taken.positions:
            feature = feature.squeeze(2)
        elif self.taken.channels_last:
            feature = feature.movedim(1, -1)
        output = functional_call(bare, weights, (feature,))
        output = output[0] if isinstance(output, tuple | list) else output
        return fitted(_over_channels(self.behind, wide(self.given.channels_first(output))), grid)


class ModuleToModule(Features):
    """For the first `meta` of the steps the meta model and the teacher's stitches learn to answer as the teacher does.

    Then, up to `alone` of the steps, everything but the student's modules and their stitches is fixed, and the meta model
    with one module of the student answers like the meta model with the teacher's module in that place: KL(p_T || p_S),
    the mean over modules. No gradient of one module's loss reaches another. After that it adds nothing, and the student
    learns as a whole from the recipe's other objectives (which do so meanwhile, too; the paper's order is one after the
    other: give these `labels` or `kd`).
    Source: Lo et al. 2024, "m2mKD", arXiv:2402.16918: shared meta model, divergence of the two stitched models as in the
    authors' code (kamanphoebe/m2mKD, `m2mKDLoss`). Its meta model is a small network of the modules' family, trained by
    itself; this one's parts, the stitches and the shares are ours.
    """

    def __init__(self, settings: FeatureObjective, student: nn.Module, context: Context) -> None:
        super().__init__(settings, student, context)
        self.runs_teacher = False  # but its modules, one by one

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""
        (part,) = self._parts
        return self.settings.weight * part(batch)

    def _made(self, settings: FeatureObjective) -> list[Part]:
        assert isinstance(settings, ModuleWise)
        self._inputs_seen = InputTap(self.student)
        self._taps.append(self._inputs_seen)
        found = self._modules_of(settings)
        generator, width = self.context.generator(f"{self.kind}.meta"), settings.width
        self._grids = [pair.positions for pair in found]
        patches = patched(_numbers(self._inputs[0][:1], self.kind), self._grids[0])
        classes = outputs_of(self.context.teacher, self.context, self.kind)
        self.meta = Meta(patches.shape[1], self._grids, width, classes, generator)
        self.of_student = self._stitched(self.student, [pair.student for pair in found], width, generator)
        self.of_teacher = self._stitched(self.context.teacher, [pair.teacher for pair in found], width, generator)
        self._modules = [self.meta, self.of_student, self.of_teacher]
        return [lambda batch: self._values(settings, batch)]

    def _modules_of(self, settings: ModuleWise) -> list[Pair]:
        """The pairs of modules that have weights, of which there must be some; every one that is named must have."""

        def has_weights(pair: Pair) -> bool:
            modules = (
                self.student.get_submodule(pair.student.path),
                self.context.teacher.get_submodule(pair.teacher.path),
            )
            return all(any(True for _ in module.parameters()) for module in modules)

        found = pairs(self.student, self.context.teacher, self._inputs, settings.pairs, settings.layers)
        kept = [pair for pair in found if has_weights(pair)]
        if not kept or (settings.layers and len(kept) < len(found)):
            without = ", ".join(str(pair) for pair in found if pair not in kept)
            raise ModelError(
                f"{self.kind} puts modules to work alone, and found none with weights in {without or 'the models'}",
                do=f"name modules that have: objectives: [{{kind: {self.kind}, layers: {{student.path: teacher.path}}}}]",
            )
        self._tell(map(str, kept))
        return kept

    def _stitched(
        self, model: nn.Module, layers: Sequence[Layer], width: int, generator: torch.Generator
    ) -> nn.ModuleList:
        modules = dict(model.named_modules())
        taken = given_to(model, self._inputs, [layer.path for layer in layers])
        return nn.ModuleList(
            Stitched(modules[layer.path], _taken_as(taken[layer.path], layer), layer, width, generator)
            for layer in layers
        )

    def _values(self, settings: ModuleWise, batch: Batch) -> torch.Tensor:
        if batch.progress >= settings.alone:
            # Nothing, but with a gradient of nothing: it may be the only objective of the recipe.
            return (0 * self.meta.head.bias.sum()).expand(len(batch.teacher))
        patches = patched(_numbers(self._inputs_seen.first, self.kind), self._grids[0])
        count, temperature, target = len(self._grids), settings.temperature, batch.teacher.detach()
        if batch.progress < settings.meta:
            own = soft_targets(self.meta(self.meta.begun(patches), 0), target, temperature)
            stitched = [
                soft_targets(self._through(self.of_teacher, k, patches), target, temperature) for k in range(count)
            ]
            return own + torch.stack(stitched).mean(0)
        values = []
        for k in range(count):
            with torch.no_grad():
                answer = self._through(self.of_teacher, k, patches)
            values.append(soft_targets(self._through(self.of_student, k, patches, fixed=True), answer, temperature))
        return torch.stack(values).mean(0)

    def _through(self, stitches: nn.ModuleList, k: int, patches: torch.Tensor, fixed: bool = False) -> torch.Tensor:
        """Logits of the meta model with module k in its place; fixed: the meta model gets no gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not fixed):
            before = self.meta(self.meta.begun(patches), 0, k)
        feature = stitches[k](before, self._grids[k])
        weights = {name: p.detach() if fixed else p for name, p in self.meta.named_parameters()}
        logits: torch.Tensor = functional_call(self.meta, weights, (feature, k + 1))
        return logits


def patched(feature: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """[batch, channels, *positions] -> [batch, channels * values of a patch, *grid], the patches of a grid side by side."""
    if feature.dim() - 2 != len(grid):
        feature = feature.flatten(2)
    sizes = feature.shape[2:] if len(grid) == feature.dim() - 2 else (math.prod(feature.shape[2:]),) * len(grid)
    parts = [max(1, size // count) for size, count in zip(sizes, grid, strict=True)]
    feature = fitted(feature, tuple(count * part for count, part in zip(grid, parts, strict=True)))
    split = [number for pair in zip(grid, parts, strict=True) for number in pair]
    apart = feature.reshape(*feature.shape[:2], *split)
    places, insides = range(2, apart.dim(), 2), range(3, apart.dim(), 2)
    return apart.permute(0, 1, *insides, *places).flatten(1, 1 + len(grid))


def fitted(feature: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """[batch, channels, *positions] averaged, or repeated, to a grid; laid in a row first where dimensions differ."""
    if tuple(feature.shape[2:]) == grid:
        return feature
    if feature.dim() - 2 == len(grid):
        pooled: torch.Tensor = _POOLING[len(grid)](feature, grid)
        return pooled
    row = F.adaptive_avg_pool1d(feature.flatten(2), math.prod(grid))
    return row.reshape(*feature.shape[:2], *grid)


def _over_channels(head: nn.Module, feature: torch.Tensor) -> torch.Tensor:
    mapped: torch.Tensor = head(feature.movedim(1, -1))
    return mapped.movedim(-1, 1)


def _numbers(inputs: torch.Tensor, kind: str) -> torch.Tensor:
    """The model's first input as [batch, channels, *positions]."""
    if not inputs.is_floating_point():
        raise ModelError(
            f"{kind} begins with the inputs as numbers, and the first input is {inputs.dtype}",
            do="leave this objective out for this task",
        )
    return wide(inputs) if inputs.dim() > 2 else wide(inputs).unsqueeze(2)


def _taken_as(shape: tuple[int, ...], given: Layer) -> Layer:
    """What a module takes, as a layer: its channels stand where those of its output do, if it keeps the form."""
    last = given.channels_last if len(shape) == len(given.shape) else len(shape) == 2
    return Layer(given.path, shape, last, given.depth)


def _without_hooks(module: nn.Module) -> nn.Module:
    bare: Any = copy.deepcopy(module)
    for part in bare.modules():
        clear_hooks(part)
    made: nn.Module = bare.requires_grad_(False)
    return made
