"""Removing channels from a copy of a model: tensors are sliced, and modules are told their new widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from kdc.core.artifact import example
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.core.trace import TRACE_BATCH
from passes.prune.channels import ChannelGraph, Mask
from passes.prune.labels import Array


def remove(model: nn.Module, graph: ChannelGraph, kept: Mask) -> nn.Module:
    """A deep copy of the model in which only these units stay. Tied parameters stay tied."""
    pruned = copy.deepcopy(model)
    tensors = {
        **dict(pruned.named_parameters(remove_duplicate=False)),
        **dict(pruned.named_buffers(remove_duplicate=False)),
    }
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for same in names.values():
        old = tensors[same[0]]
        new = _sliced(old, {axis: o for n in same for (p, axis), o in graph.axes.items() if p == n}, graph, kept)
        if new is old:
            continue
        for name in same:
            owner, _, leaf = name.rpartition(".")
            setattr(pruned.get_submodule(owner), leaf, new)
    for name, module in pruned.named_modules(remove_duplicate=False):
        _tell(module, name, graph, kept)
    return pruned


def _sliced(tensor: torch.Tensor, owners: dict[int, Array], graph: ChannelGraph, kept: Mask) -> torch.Tensor:
    result = tensor.detach()
    for axis, units in owners.items():
        stay = graph.kept_of(units, kept)
        if not stay.all():
            result = result.index_select(axis, torch.from_numpy(np.flatnonzero(stay)).to(result.device))
    if result.shape == tensor.shape:
        return tensor
    return nn.Parameter(result, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else result


def _tell(module: nn.Module, name: str, graph: ChannelGraph, kept: Mask) -> None:
    """Set the attributes that torch's own modules read in their forward to what the tensors have become."""
    blocks = graph.blocks.get(name)
    count = None if blocks is None else int(graph.kept_of(blocks[0], kept).sum()) // blocks[1]
    width = [d if isinstance(d, int) else int(graph.kept_of(d, kept).sum()) for d in graph.widths.get(name, ())]
    if isinstance(module, _ConvNd):
        module.groups = module.groups if count is None else count
        first, second = module.weight.shape[0], module.weight.shape[1] * module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, _NormBase) and width:
        module.num_features = width[0]
    elif isinstance(module, nn.GroupNorm) and width:
        module.num_channels, module.num_groups = width[0], module.num_groups if count is None else count
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and width:
        module.normalized_shape = tuple(width)


def check(model: nn.Module, pruned: nn.Module, inputs: Sequence[TensorSpec]) -> None:
    """Run both on an example. Raises: ModelError where the pruned one fails or its outputs differ in shape."""
    expected, found = run(model, inputs), run(pruned, inputs)
    if expected != found:
        raise ModelError(
            f"the pruned model's outputs have shapes {found}; the model's have {expected}",
            do="keep every channel of the layers whose size forward() spells out as a number",
        )


def run(model: nn.Module, inputs: Sequence[TensorSpec]) -> list[tuple[int, ...]]:
    """The shapes of the model's outputs on an example, in evaluation mode; its mode is left as it was.

    Raises: ModelError that names the innermost module whose forward failed.
    """
    entered: list[str] = []

    def leave(*_: object) -> None:
        entered.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(_enter, entered, name)))
        hooks.append(module.register_forward_hook(leave))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(*(example(spec, TRACE_BATCH) for spec in inputs))
    except Exception as error:  # whatever a user's forward raises
        where = f"layer {entered[-1]!r}" if entered and entered[-1] else "the model's own forward()"
        raise ModelError(
            f"the pruned model fails in {where}: {str(error).strip().splitlines()[0] if str(error) else error!r}",
            do="keep every channel of the layers whose size forward() spells out as a number",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _enter(entered: list[str], name: str, *_: object) -> None:
    entered.append(name)
