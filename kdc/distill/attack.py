"""An attack on a model's inputs, and the model's scores under it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from kdc.core.contract import Task, named_seed
from kdc.core.data import Split
from kdc.core.errors import DataError, ModelError
from kdc.distill.modes import differentiable, evaluating
from kdc.distill.strategy_settings.adversarial import Attack

BATCH = 50  # samples that are attacked at once: what a gradient needs of the forward is in memory for all of them
Loss = Callable[[torch.Tensor], torch.Tensor]  # outputs [batch, ...] -> [batch]


@dataclass(frozen=True)
class Bounds:
    """The least and largest value of an input, each broadcastable to it: [1, channels, 1, 1] for pictures, else [1]."""

    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def of(split: Split, attack: Attack) -> Bounds:
        """As the attack's settings say, or as seen in the split's first input; of pictures, for each channel.

        Raises: DataError for an input that is not of floating point, or whose range is empty.
        """
        seen = split.inputs[0]
        if not seen.is_floating_point():
            raise DataError(
                f"input 0 holds {seen.dtype}; an attack changes numbers of floating point a little",
                do="leave strategies with an attack out of training.strategies for these data",
            )
        dims, shape = ((0, 2, 3), (1, -1, 1, 1)) if seen.dim() == 4 else (tuple(range(seen.dim())), (1,))
        low = seen.amin(dims).reshape(shape) if attack.low is None else torch.full((1,), attack.low)
        high = seen.amax(dims).reshape(shape) if attack.high is None else torch.full((1,), attack.high)
        if bool((low > high).any()) or bool((low >= high).all()):
            raise DataError(
                f"the inputs' range is from {float(low.min()):g} to {float(high.max()):g}; an attack needs low < high",
                do="give attack.low and attack.high of the strategy",
            )
        return Bounds(low, high)

    def to(self, device: torch.device) -> Bounds:
        """The same on a device."""
        return Bounds(self.low.to(device), self.high.to(device))


def attacked(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    loss: Loss,
    attack: Attack,
    bounds: Bounds,
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    """The inputs changed to raise the loss: x <- clip(x + step * sign of its gradient), from a random start.

    The first input alone changes: by at most epsilon times its range, and not out of its range (a value that is out of
    it already may stay). The model is in evaluation mode meanwhile, and its parameters get no gradient; that of the inputs
    passes straight through the rounding of a quantized model.

    Args: loss: of the model's outputs, [batch]. generator: draws the start, uniform within epsilon.
    Returns: the inputs, the first of them without a graph.
    Raises: ModelError where the outputs have no gradient for the first input.
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1. The start is uniform for every loss, as in ARD's code; the
        codes of TRADES and RSLAD start from normal noise of 0.001 where the loss is a divergence.
    """
    first, rest = inputs[0].detach(), inputs[1:]
    bounds = bounds.to(first.device)
    scale = bounds.high - bounds.low
    least = torch.maximum(first - attack.epsilon * scale, torch.minimum(first, bounds.low))
    most = torch.minimum(first + attack.epsilon * scale, torch.maximum(first, bounds.high))
    start = torch.rand(first.shape, generator=generator).to(first)
    changed = (first + (2 * start - 1) * (attack.epsilon * scale)).clamp(least, most)
    with differentiable(model), torch.enable_grad():
        for _ in range(attack.steps):
            changed = changed.detach().requires_grad_()
            slope = _slope(loss(model(changed, *rest)), changed)
            changed = (changed.detach() + attack.step * scale * slope.sign()).clamp(least, most)
    return changed.detach(), *rest


def robust_scores(
    model: nn.Module,
    split: Split,
    task: Task,
    attack: Attack,
    bounds: Bounds,
    seed: int,
    restarts: int = 1,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray[Any, Any]:
    """The task's score of each sample under an attack against its label: the worst of `restarts` random starts.

    Args: bounds: of the inputs, from the training split. seed: of the starts, each batch and restart with its own.
        report: is told how many samples are done.
    Returns: [n] in 0..1; 100 times their mean is the headline metric under attack. Never above those of the clean
        samples, for the unchanged sample is among what an attacker may give.
    """
    found = []
    with evaluating(model):
        for number, batch in enumerate(split.batches(BATCH)):
            labels = batch.labels.cpu().numpy()
            scores = task.scores(_outputs(model, batch.inputs), labels)
            for restart in range(restarts):
                generator = torch.Generator().manual_seed(named_seed(seed, "attack", number, restart))
                changed = attacked(model, batch.inputs, _against(batch.labels, task), attack, bounds, generator)
                scores = np.minimum(scores, task.scores(_outputs(model, changed), labels))
            found.append(scores)
            report(min((number + 1) * BATCH, len(split)))
    return np.concatenate(found)


def drawn(split: Split, count: int, seed: int) -> Split:
    """The split, or `count` of its samples where it has more: the same ones for every model."""
    if len(split) <= count:
        return split
    generator = torch.Generator().manual_seed(named_seed(seed, "attack", "samples"))
    return split[torch.randperm(len(split), generator=generator)[:count].sort().values]


def _slope(values: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The gradient of the values' sum."""
    found = torch.autograd.grad(values.sum(), inputs, allow_unused=True)[0] if values.requires_grad else None
    if found is None:
        raise ModelError(
            "an attack needs the gradient of the model's outputs for its first input, and there is none",
            do="leave strategies with an attack out of training.strategies, or make the model's forward differentiable",
        )
    return found


@torch.no_grad()
def _outputs(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> np.ndarray[Any, Any]:
    outputs: np.ndarray[Any, Any] = model(*inputs).float().cpu().numpy()
    return outputs


def _against(labels: torch.Tensor, task: Task) -> Loss:
    return lambda outputs: task.loss(outputs, labels)
