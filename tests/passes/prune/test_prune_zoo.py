"""Laws of removing channels, over a zoo of the ways in which they can be tied."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_zoo import ZOO
from torch import nn

from kdc.core.spec import TensorSpec
from kdc.core.torch_macs import counted
from passes.prune.selection import Limits, Selector
from passes.prune.surgery import check, remove

IMAGES = (TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32"),)
NAMES = pytest.mark.parametrize("name", ZOO)


def some(graph, share=0.4, alignment=1, floor=1):
    """A mask that keeps about this share of the MACs, by scores of no meaning."""
    scores = np.random.default_rng(0).random(graph.units)
    return Selector(graph, scores, Limits(alignment, floor, 0.9), "global").keep(share)


def images(count=3):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def silenced(model, graph, kept):
    """A copy whose removed units are made by zeros alone; norms over channels count the kept ones alone."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, axis), owners in graph.axes.items():
            if (name, axis) not in graph.readers and name in tensors:
                lost = torch.from_numpy(np.flatnonzero(~graph.kept_of(owners, kept)))
                tensors[name].index_fill_(axis, lost, 0)
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and not isinstance(graph.widths[name][0], int):
            stay = torch.from_numpy(graph.kept_of(graph.widths[name][0], kept))
            module.register_forward_hook(over_the_kept(stay))
    return model


def over_the_kept(stay):
    def hook(module, inputs, output):
        [x] = inputs
        result = torch.zeros_like(output)
        weight, bias = (None if own is None else own[stay] for own in (module.weight, module.bias))
        if isinstance(module, nn.LayerNorm):
            result[..., stay] = F.layer_norm(x[..., stay], (int(stay.sum()),), weight, bias)
        else:
            blocks = stay.reshape(module.num_groups, -1)
            groups = int(blocks.any(1).sum())
            result[:, stay] = F.group_norm(x[:, stay], groups, weight, bias)
        return result

    return hook


@NAMES
def test_exactly_the_layers_that_can_be_pruned_are_found(zoo, name):
    graph = zoo(name).graph
    found = {layer for group in graph.groups if group.prunable for layer in group.layers}
    assert found == ZOO[name].prunable, {group.layers: group.reason for group in graph.groups}


@NAMES
def test_removing_channels_that_are_zero_changes_no_output(zoo, name):
    known = zoo(name)
    kept = some(known.graph)
    assert not kept.all()
    with torch.no_grad():
        expected = silenced(known.model, known.graph, kept)(images())
        found = remove(known.model, known.graph, kept)(images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@NAMES
def test_every_prunable_group_really_leaves_the_tensors(zoo, name):
    known = zoo(name)
    for group in known.graph.groups:
        if group.prunable:
            unit = group.units[-1]
            pruned = remove(known.model, known.graph, known.graph.without([unit]))
            check(known.model, pruned, IMAGES)
            before, after = (dict(m.named_parameters(remove_duplicate=False)) for m in (known.model, pruned))
            for layer, count in zip(group.layers, group.channels, strict=True):
                parameter, axis = known.graph.layers[layer]
                assert before[parameter].shape[axis] - after[parameter].shape[axis] == count


@NAMES
def test_macs_foretold_are_the_macs_that_torch_runs(zoo, name):
    known = zoo(name)
    for kept in (known.graph.without([]), some(known.graph), some(known.graph, 0.1)):
        pruned = remove(known.model, known.graph, kept)
        with torch.no_grad(), counted() as counter:
            pruned(images(1))
        assert known.graph.macs(kept) == counter.get_total_flops() // 2


@NAMES
def test_a_pruned_model_still_learns(zoo, name):
    known = zoo(name)
    pruned = remove(known.model, known.graph, some(known.graph)).train()
    pruned(images()).square().mean().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in pruned.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in pruned.parameters())


def test_a_shared_weight_stays_shared(zoo):
    known = zoo("Shared")
    pruned = remove(known.model, known.graph, some(known.graph))
    assert pruned.tied.weight is pruned.other.weight
    assert pruned.tied.weight.shape[0] < 12


def test_the_model_that_is_pruned_stays_as_it_was(zoo):
    known = zoo("ResNet")
    before = {name: tensor.clone() for name, tensor in known.model.state_dict().items()}
    remove(known.model, known.graph, some(known.graph))
    assert all(torch.equal(before[name], tensor) for name, tensor in known.model.state_dict().items())


def test_a_whole_group_norm_keeps_the_statistics_of_the_groups_that_stay(zoo):
    known = zoo("GroupNorm")
    pruned = remove(known.model, known.graph, some(known.graph))
    assert pruned.many.num_channels // pruned.many.num_groups == 2
    assert pruned.many.num_groups < 8
    assert pruned.few.num_groups == 2
    assert pruned.few.num_channels < 16
