"""A model whose forward() changes its inputs gets copies of them, wherever it is called.

The copies are made by a forward pre-hook on the model itself: it is called by whoever calls the model, deep copies of the
model have it too, and torch.export takes it into the graph as a clone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def copy_inputs_if_changed(model: nn.Module, samples: tuple[torch.Tensor, ...]) -> bool:
    """Have the model's inputs copied before each forward, if its forward() writes into them.

    It is tried in evaluation and in training mode, for some models change them in one alone. A write that leaves the
    values as they were (`relu_` of what is positive) counts: other samples are not positive.

    Args: samples: one tensor [batch, ...] for each of the model's inputs; they stay as they are.
    Returns: whether it copies them now.
    """
    if copies_inputs(model):
        return True
    for training in (False, True):
        tried = copy.deepcopy(model)  # a forward in training mode moves BatchNorm's statistics
        tried.train(training)
        inputs = [tensor.clone() for tensor in samples]
        versions = [tensor._version for tensor in inputs]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                tried(*inputs)
            except Exception:  # what a forward raises is told by those who need its outputs
                continue
        written = any(tensor._version != version for tensor, version in zip(inputs, versions, strict=True))
        # `x.data` and arrays of NumPy write without a new version.
        if written or not all(map(_same, inputs, samples)):
            model.register_forward_pre_hook(_copied)
            return True
    return False


def copies_inputs(model: nn.Module) -> bool:
    """Whether the model's inputs are copied before each forward."""
    return _copied in model._forward_pre_hooks.values()


def clear_hooks(module: nn.Module) -> None:
    """Remove all hooks of a module but the one that copies its inputs: it belongs to what the module computes."""
    copying = copies_inputs(module)
    for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
        hooks.clear()
    if copying:
        module.register_forward_pre_hook(_copied)


def _copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in inputs)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """By bytes: NaN is not equal to itself."""
    return bool(torch.equal(one.reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)))
