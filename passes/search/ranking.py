"""How well an untrained student will learn from this teacher, foretold from one mini-batch without any training.

DisWOT (Dong, Li, Wei 2023, "DisWOT: Student Architecture Search for Distillation WithOut Training", CVPR,
arXiv:2303.15678) compares what the last feature maps of teacher and student single out (Grad-CAM maps) and how they
relate the samples. Written anew from the paper's abstract, which names the two similarities and what they are
conditioned on; their public code computes something else. Where the abstract is silent (norms, the number of classes,
equal weights of the two parts) the choice is ours and told below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kdc.core.errors import ModelError

MOST_CLASSES = 16
"""Whose Grad-CAM maps are compared: each costs a pass back through the classifier."""


@dataclass(frozen=True)
class Reference:
    """What students are compared with. `semantics` [classes, classes] and `relations` [samples, samples] of the teacher.

    `classes`: those compared, the most frequent ones of the batch.
    """

    inputs: tuple[torch.Tensor, ...]
    classes: tuple[int, ...]
    semantics: torch.Tensor
    relations: torch.Tensor

    @staticmethod
    def of(teacher: nn.Module, inputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> Reference:
        """The teacher, as it is, on one mini-batch. The model is left as it was.

        Args: inputs: each [samples, ...], two samples and more. labels: classes, integers [samples].
        Raises: ModelError where the model gives no logits [samples, classes], or has no inner feature of a sample.
        """
        values, counts = torch.unique(labels, return_counts=True)
        order = sorted(range(len(values)), key=lambda place: (-int(counts[place]), int(values[place])))
        classes = tuple(sorted(int(values[place]) for place in order[:MOST_CLASSES]))
        return Reference(inputs, classes, *_similarities(teacher, inputs, classes))


def diswot(student: nn.Module, reference: Reference) -> float:
    """How alike student and teacher are: at most 0, higher is better. The student is left as it was.

    Minus the Frobenius distance of the two class-by-class matrices of Grad-CAM maps, minus that of the two
    sample-by-sample matrices of features. All rows are normalized to length 1 before, so that neither the number of
    channels nor the scale of a network's features counts.

    Raises: ModelError where the student gives no logits [samples, classes], or has no inner feature of a sample.
    Source: Dong et al. 2023, arXiv:2303.15678.
    """
    semantics, relations = _similarities(student, reference.inputs, reference.classes)
    distance = torch.linalg.norm(semantics - reference.semantics) + torch.linalg.norm(relations - reference.relations)
    return 0.0 - float(distance)  # the same model gives 0, not -0


def _similarities(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], classes: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[classes, classes] of the Grad-CAM maps and [samples, samples] of the features, by cosine.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3): the map of class c is ReLU(sum over channels k of
    w[c, k] * A[k]), w[c, k] the mean over the map of the derivative of logit c by A[k]; for each sample by itself.
    """
    with _batch_statistics(model):
        path = _last_feature(model, inputs)
        feature, logits = _run_to(model, path, inputs)
        if logits.dim() != 2 or logits.shape[1] <= max(classes):
            raise ModelError(
                f"search: DisWOT compares logits [batch, classes] and the model gives {list(logits.shape)} where the "
                f"labels go up to {max(classes)}",
                do="set ranking: parameters",
            )
        maps = []
        for label in classes:
            (slope,) = torch.autograd.grad(logits[:, label].sum(), feature, retain_graph=True, allow_unused=True)
            slope = torch.zeros_like(feature) if slope is None else slope
            weight = slope.flatten(2).mean(2, keepdim=True)  # [samples, channels, 1]
            maps.append(F.relu((weight * feature.detach().flatten(2)).sum(1)).flatten())
    rows = F.normalize(torch.stack(maps), dim=1)
    samples = F.normalize(feature.detach().flatten(1), dim=1)
    return rows @ rows.T, samples @ samples.T


def _run_to(model: nn.Module, path: str, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The last feature [samples, channels, places...], from which gradients are taken, and the logits that it leads to.

    What runs before it needs no gradient and gets none, which is most of the time saved.
    """
    found: list[torch.Tensor] = []

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().clone().requires_grad_(True)
        found[:] = [leaf]
        torch.set_grad_enabled(True)
        return leaf.clone()  # a model may write into what its layers give, which a leaf does not allow

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = model(*inputs)
    finally:
        handle.remove()
    feature = found[0]
    return (feature if feature.dim() > 2 else feature.unsqueeze(2)), logits


@torch.no_grad()
def _last_feature(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """The path of the module that gives the last map [samples, channels, places...] of more than one place.

    Where there is none: of the last feature [samples, channels] before the logits.
    """
    maps: list[str] = []
    vectors: list[tuple[str, torch.Tensor]] = []
    few = tuple(tensor[:2] for tensor in inputs)

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() >= 2:
                if output[0, 0].numel() > 1:
                    maps.append(path)
                vectors.append((path, output))

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules() if path]
    try:
        result = model(*few)
    finally:
        for handle in handles:
            handle.remove()
    inner = maps or [path for path, output in vectors if output is not result]
    if not inner:
        raise ModelError(
            f"search: DisWOT compares inner features, and {type(model).__name__} has no module that gives one",
            do="set ranking: parameters",
        )
    return inner[-1]


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's own mean and variance and keep none; all else is in evaluation mode.

    The running statistics of an untrained network are those of no data, and its activations fade or grow with depth.
    The teacher is run in the same way, so that two equal networks are alike.
    """
    before = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    tracking = [module.track_running_stats for module in norms]
    model.eval()
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False  # without tracking torch writes to no buffer
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
        for module, training in before.items():
            module.training = training
