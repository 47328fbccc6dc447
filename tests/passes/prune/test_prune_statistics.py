"""Statistics over channels: nothing that stays may change without a word when channels leave."""

import copy

import numpy as np
import pytest
import torch
from statistics_zoo import ZOO, Between, Conv, by_batch_norm, by_einsum, by_layer_norm, by_singular_value
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from passes.prune import Kept, Prune, layers, shapes, values
from passes.prune.channels import ChannelGraph
from passes.prune.decision import renormalized_summary
from passes.prune.probe import probe, verify
from passes.prune.surgery import remove

IMAGES = (TensorSpec(name="image", shape=("batch", 3, 16, 16)),)


def made(name):
    torch.manual_seed(0)
    return ZOO[name][0]().eval().requires_grad_(False)


def some(graph, groups, seed=0):
    """A mask without a random half of these groups' units; one of each stays."""
    random = np.random.default_rng(seed)
    return graph.without([unit for group in groups for unit in random.permutation(group.units)[: group.size // 2]])


def outputs_differ_by(model, graph, kept):
    """Between the pruned model and the model in which these channels are made of zeros, in the outputs' RMS."""
    zeroed = copy.deepcopy(model)
    tensors = dict(zeroed.named_parameters())
    for (name, axis), owners in graph.axes.items():
        if (name, axis) not in graph.readers and name in tensors:
            tensors[name].index_fill_(axis, torch.from_numpy(np.flatnonzero(~graph.kept_of(owners, kept))), 0)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    full, cut = zeroed(x), remove(model, graph, kept)(x)
    return float((full - cut).abs().max() / full.square().mean().sqrt())


@pytest.mark.parametrize("name", ZOO)
def test_what_stays_computes_what_it_did_or_the_channels_are_kept_or_the_change_is_told(name):
    model, (_, kept_whole, noted) = made(name), ZOO[name]
    by_rules = ChannelGraph.of(model, IMAGES)
    assert all(not group.prunable for group in by_rules.groups if set(group.layers) & kept_whole)
    graph = probe(model, by_rules, IMAGES)
    prunable = [group for group in graph.groups if group.prunable]
    names = {layer for group in prunable for layer in group.layers}
    assert not names & kept_whole
    assert names >= noted
    assert len(names) >= 1
    told = {group.name for group in prunable if renormalized_summary(graph, some(graph, [group]))}
    assert told == noted
    exact = [group for group in prunable if group.name not in told]
    for groups in [[group] for group in exact] + [exact] * (len(exact) > 1):
        assert outputs_differ_by(model, graph, some(graph, groups)) < 1e-4, [group.layers for group in groups]


def passes_on(flow, node):
    """A rule as broken as can be: every dimension goes through."""
    return flow.dims(node.all_input_nodes[0])


BROKEN = {
    "batch_norm": by_batch_norm,
    "layer_norm": by_layer_norm,
    "einsum": by_einsum,
    "matmul": by_singular_value,
}


@pytest.mark.parametrize("operator", BROKEN)
def test_a_broken_rule_is_found_by_the_values(monkeypatch, operator):
    torch.manual_seed(0)
    model = Between(Conv(BROKEN[operator])).eval().requires_grad_(False)
    rule = layers.LAYER_RULES[operator]

    def broken(flow, node):
        flow.freeze = lambda labels, reason: None  # whatever the rule wants to keep
        try:
            return rule(flow, node)
        finally:
            del flow.freeze

    monkeypatch.setitem(layers.LAYER_RULES, operator, broken)
    graph = ChannelGraph.of(model, IMAGES)
    [first] = [group for group in graph.groups if "first" in group.layers]
    assert first.prunable
    kept = some(graph, [first])
    assert outputs_differ_by(model, graph, kept) > 1e-2
    with pytest.raises(ModelError, match="computes other values without it"):
        verify(model, remove(model, graph, kept), graph, kept, IMAGES)
    [first] = [group for group in probe(model, graph, IMAGES).groups if "first" in group.layers]
    assert "computes other values" in first.reason


def test_a_rule_that_lets_channels_mix_is_found_by_the_values(monkeypatch):
    model = made("softmax of channels")
    monkeypatch.setitem(shapes.SHAPE_RULES, "softmax", passes_on)
    graph = ChannelGraph.of(model, IMAGES)
    [mixed] = [group for group in graph.groups if "middle.conv" in group.layers]
    assert mixed.prunable
    [mixed] = [group for group in probe(model, graph, IMAGES).groups if "middle.conv" in group.layers]
    assert "softmax computes other values" in mixed.reason


def test_a_decision_by_hand_over_a_statistic_of_weights_is_refused(artifact_of):
    artifact = artifact_of(made("by_batch_norm 1x1"))
    with pytest.raises(ModelError, match="takes its statistics over it"):
        Prune().apply(artifact, Kept(kept={"first": tuple(range(8))}))


def test_the_change_by_a_norm_over_channels_is_told(artifact_of, context_of):
    events = []
    artifact = artifact_of(made("layer norm"))
    Prune(importance="magnitude", keep_macs=0.5).decide(artifact, context_of(artifact.model, events=events))
    assert any("embed: layer_norm takes its statistics" in getattr(event, "text", "") for event in events)


def test_the_trial_changes_neither_the_model_nor_its_buffers():
    class Counting(Between):
        def __init__(self):
            super().__init__(torch.nn.Conv2d(16, 32, 1))
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen += 1
            return super().forward(x)

    model = Counting().eval().requires_grad_(False)
    graph = ChannelGraph.of(model, IMAGES)
    before = float(model.seen)
    kept = some(graph, [group for group in graph.groups if group.prunable])
    program_before = {name: tensor.clone() for name, tensor in graph.program.state_dict.items()}
    assert values.difference(graph, ChannelGraph.of(remove(model, graph, kept), IMAGES), kept, IMAGES) is None
    assert float(model.seen) == before
    assert all(torch.equal(tensor, program_before[name]) for name, tensor in graph.program.state_dict.items())


def test_a_model_is_traced_once_and_anew_where_its_weights_or_its_inputs_are_others():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    graph = ChannelGraph.of(model, IMAGES)
    assert ChannelGraph.of(model, IMAGES) is graph
    assert ChannelGraph.of(copy.deepcopy(model), IMAGES) is not graph
    other = tuple(spec.model_copy(update={"name": "other"}) for spec in IMAGES)
    assert ChannelGraph.of(model, other) is not graph
    graph = ChannelGraph.of(model, IMAGES)
    model[0].weight.data.mul_(2)  # which no version counter sees
    assert ChannelGraph.of(model, IMAGES) is not graph
