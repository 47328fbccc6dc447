"""The models of the leaderboard: the student, cut from the teacher or the user's own, fresh weights, control teachers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdc.core.artifact import Artifact
from kdc.core.contract import Context, Task, named_seed
from kdc.core.data import Split, Splits
from kdc.core.errors import ModelError
from kdc.core.usercode import call, load_callable
from kdc.distill.alignment import Layer
from kdc.distill.input_copies import copy_inputs_if_changed
from kdc.distill.taps import Tap, candidates
from kdc.distill.teacher import EVALUATION_BATCH
from passes.prune import Kept, Prune

Start = Literal["fresh", "pruned"]
RIDGE = 1e-3  # of the truncated teacher's head, as a share of the features' mean square
SCALES = torch.logspace(-1, 3, 81, dtype=torch.float64)


class Structure(BaseModel, frozen=True, extra="forbid"):
    """The student's structure, the same for every method: channels that stay of the teacher, or the user's own."""

    kept: tuple[tuple[str, tuple[int, ...]], ...] = Field(default=(), description="the layers that lose channels")
    build: str | None = Field(default=None, description="the user's callable instead")
    source: str | None = Field(default=None, description="the fingerprint of its source")


def narrowed(teacher: Artifact[nn.Module], context: Context, keep_macs: float) -> Structure:
    """The teacher with the same share of every layer's channels, about this share of its multiply-accumulates.

    By the weights' size alone, without data, so that the structure takes no side; the best channels stay, which matters
    where training begins from them.
    """
    settings = Prune(keep_macs=keep_macs, importance="magnitude", scope="layer")
    return Structure(kept=tuple(settings.decide(teacher, context).kept.items()))


def cut(teacher: Artifact[nn.Module], structure: Structure) -> nn.Module:
    """The teacher without the channels that the structure leaves out, with the weights of those that stay."""
    made: nn.Module = Prune().apply(teacher, Kept(kept=dict(structure.kept))).model
    return made


def built(build: str, seed: int, samples: tuple[torch.Tensor, ...]) -> nn.Module:
    """The user's own student, whose weights its callable draws by the seed.

    Args: samples: of the data, one tensor [batch, ...] for each of its inputs.
    Raises: ModelError where it cannot be called, or gives no module.
    """
    builder = load_callable(build, Path.cwd(), "student", ModelError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "student"))
        made = call(builder, {}, f"student {build}", ModelError)
    if not isinstance(made, nn.Module):
        raise ModelError(f"student {build} returned a {type(made).__name__}", do="return a torch.nn.Module")
    copy_inputs_if_changed(made, samples)
    return made


def fresh(model: nn.Module, seed: int, name: str = "student") -> nn.Module:
    """The model, in place, with weights as they are before any training.

    Every module with a `reset_parameters` (torch's own layers have it) draws its parameters anew. Parameters that a
    user's module holds itself (class tokens, positions, scales) have no rule that is known here: their values change
    places at random, which keeps their sizes and nothing that they learned.
    """
    generator = torch.Generator().manual_seed(named_seed(seed, name, "order"))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(named_seed(seed, name))
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for tensor in module.parameters(recurse=False):
                order = torch.randperm(tensor.numel(), generator=generator)
                tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return model


def random_teacher(teacher: nn.Module, data: Splits, seed: int) -> nn.Module:
    """The teacher's structure with fresh weights: what a student gains from it, it does not gain from knowledge.

    The norms' statistics are those of the calibration split, for with none a deep net answers all inputs alike.
    """
    made = fresh(copy.deepcopy(teacher), seed, "random teacher").eval()
    norms = [module for module in made.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in data.calibration.batches(EVALUATION_BATCH):
            made(*batch.inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return made.eval().requires_grad_(False)


class Truncated(nn.Module):
    """The first layers of a teacher, and a linear classifier on their channels, pooled over all positions."""

    def __init__(self, teacher: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.teacher, self.layer = teacher, layer
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def features(self, *inputs: torch.Tensor) -> torch.Tensor:
        """[batch, channels + 1]: each channel's mean over the positions, and 1."""
        tap = Tap(self.teacher, [self.layer.path])
        try:
            with torch.no_grad():
                self.teacher(*inputs)
            pooled = self.layer.channels_first(tap.features[self.layer.path]).flatten(2).mean(2)
        finally:
            tap.close()
        return torch.cat([pooled, pooled.new_ones(len(pooled), 1)], 1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.features(*inputs) @ self.weight


def truncated_teacher(teacher: nn.Module, data: Splits, task: Task) -> Truncated:
    """The teacher's first half (of what `taps.candidates` finds) with a classifier fitted to the labels.

    Least squares onto the classes' indicators, with a little ridge, on the training split as it is; least squares tells
    the order of the classes and not how sure to be, so its answers are then scaled to the least loss on the calibration
    split.

    Raises: ModelError where the teacher has no inner layer, or is no classifier.
    """
    layers = candidates(teacher, data.calibration.inputs)
    outputs = teacher(*(tensor[:2] for tensor in data.calibration.inputs))
    if not layers or outputs.dim() != 2:
        what = "has no inner layer that could be its last" if outputs.dim() == 2 else "is no classifier"
        raise ModelError(f"the teacher {what}: a truncated one cannot be made of it")
    made = Truncated(teacher, layers[(len(layers) - 1) // 2])
    features = _over(made, data.train)
    targets = torch.nn.functional.one_hot(data.train.labels, outputs.shape[1]).double() - 1 / outputs.shape[1]
    gram = features.T @ features
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, features.T @ targets)
    answers = _over(made, data.calibration) @ weight
    losses = [float(task.loss(scale * answers, data.calibration.labels).mean()) for scale in SCALES]
    made.weight.data = (SCALES[losses.index(min(losses))] * weight).float()
    return made.eval()


def _over(model: Truncated, split: Split) -> torch.Tensor:
    parts = [model.features(*batch.inputs) for batch in split.batches(EVALUATION_BATCH)]
    return torch.cat(parts).double()
