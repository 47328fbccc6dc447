"""How much each unit matters: one number a unit, from the weights alone or from the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdc.core.contract import Context
from passes.prune.channels import FIXED, ChannelGraph
from passes.prune.flow import Axis

Scores = npt.NDArray[np.float64]
"""[units], >= 0."""


def magnitude(model: nn.Module, graph: ChannelGraph) -> Scores:
    """L2 norm of all weights that make or read a unit: of filters as their batch norm scales them, and of columns.

    A filter's own size says nothing where a batch norm follows, which undoes any scale; so that weights are taken times
    scale / sqrt(variance + epsilon) of their output channel, as inference folds them.

    Source: Li et al. 2017, arXiv:1608.08710 (filters); Fang et al. 2023, arXiv:2301.12900, section 3.3 (groups).
    """
    tensors = _tensors(model)

    made_along = dict(graph.layers.values())

    def squares(axis: Axis) -> torch.Tensor:
        name, dimension = axis
        weight, fold = tensors[name].detach().double(), graph.folds.get(name)
        if fold is not None and name in made_along:
            gain = (tensors[fold.variance].double() + fold.epsilon).rsqrt()
            gain = gain if fold.scale is None else gain * tensors[fold.scale].detach().double()
            weight = (weight.movedim(made_along[name], -1) * gain).movedim(-1, made_along[name])
        return _summed(weight.square(), dimension)

    return np.sqrt(_by_unit(graph, [*graph.layers.values(), *graph.readers], squares))


def taylor(model: nn.Module, graph: ChannelGraph, context: Context, *, samples: int, batch: int) -> Scores:
    """First-order change of the task's loss when a unit is removed: mean over batches of |sum of weight * gradient|.

    The sum is over the weights that *read* the unit, which is the derivative of the loss by a gate on the unit wherever
    it is read: unlike the sum over the weights that make it, it does not vanish or change with a norm in between. A
    unit that no weight reads is judged by those that make it. Runs on a copy, in evaluation mode.

    Args: samples: of the training split, drawn by the generator "importance"; batch: samples a gradient is taken of;
        small ones let samples that disagree count.
    Returns: nats (of the task's loss), [units].
    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 8 (absolute value instead of the square, which keeps units
        of the loss, so that scores of different layers can be compared).
    """
    copied = copy.deepcopy(model).eval().requires_grad_(True)
    tensors = _tensors(copied)
    read = _counts(graph, graph.readers) > 0
    makers = list(graph.layers.values())
    train = context.data.train
    order = torch.randperm(len(train), generator=context.generator("importance"))[:samples]
    total, batches = np.zeros(graph.units), 0

    def products(axis: Axis) -> torch.Tensor:
        tensor = tensors[axis[0]]
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        return _summed(tensor.detach().double() * gradient.double(), axis[1])

    for part in train[order].batches(batch):
        if batches and context.out_of_time("importance", f"scores of {batches * batch} of {len(order)} samples"):
            break
        copied.zero_grad(set_to_none=True)
        torch.autograd.backward(context.task.loss(copied(*part.inputs), part.labels).mean())
        change = np.where(read, _by_unit(graph, graph.readers, products), _by_unit(graph, makers, products))
        total += np.abs(change)
        batches += 1
    return total / max(batches, 1)


def normalised(scores: Scores, graph: ChannelGraph) -> Scores:
    """Each unit's score over the mean of its group, so that layers of different scale compete.

    Source: torch-pruning's "mean" normaliser (Fang et al. 2023, arXiv:2301.12900).
    """
    result = scores.copy()
    for group in graph.groups:
        own = list(group.units)
        mean = float(scores[own].mean())
        result[own] = scores[own] / mean if mean > 0 else 1.0
    return result


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _summed(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Over every other dimension: [size of axis]."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1).sum(1)


def _by_unit(graph: ChannelGraph, axes: list[Axis] | tuple[Axis, ...], value: Callable[[Axis], torch.Tensor]) -> Scores:
    """One value an index of each of these dimensions, summed by the unit that the index belongs to."""
    result = np.zeros(graph.units)
    for axis in axes:
        owners = graph.axes[axis]
        mine = owners != FIXED
        np.add.at(result, owners[mine], value(axis).cpu().numpy()[mine])
    return result


def _counts(graph: ChannelGraph, axes: tuple[Axis, ...]) -> npt.NDArray[np.int64]:
    result = np.zeros(graph.units, dtype=np.int64)
    for axis in axes:
        owners = graph.axes[axis]
        np.add.at(result, owners[owners != FIXED], 1)
    return result
