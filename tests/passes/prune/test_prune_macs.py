"""The multiply-accumulates that pruning goes by are those of the exported file, which the budget's limit is held against."""

import numpy as np
import pytest
import torch
from macs_zoo import ZOO, Heads, Tokens, by_matmul
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.spec import TensorSpec
from kdc.core.torch_macs import counted
from kdc.numerics.cost import count
from passes.export.lower import lower
from passes.prune import Prune
from passes.prune.channels import ChannelGraph
from passes.prune.probe import probe
from passes.prune.selection import Limits, Selector
from passes.prune.surgery import remove
from passes.simplify import Rounds, Simplify

IMAGES = (TensorSpec(name="image", shape=("batch", 3, 16, 16)),)
QUICK = ("gated", "bilinear", "fused_with_mask")
WEIGHTS_ALONE = {"bilinear": 5 * 6 * 12}
"""Products of weights alone, which torch computes for each batch and the exported file's runtime once."""


def made(name):
    torch.manual_seed(0)
    return ZOO[name]().eval().requires_grad_(False)


def graph_of(model, inputs=IMAGES):
    return probe(model, ChannelGraph.of(model, inputs), inputs)


def cut(graph, share=0.5):
    return Selector(graph, np.random.default_rng(0).random(graph.units), Limits(1, 1, 0.9), "global").keep(share)


def macs_of_file(model, artifact_of, inputs=IMAGES):
    artifact = artifact_of(model, inputs)
    exported = artifact.with_model(lower(artifact, 18))
    return count(Simplify().apply(exported, Rounds(rounds=3)).model)[1]


@pytest.mark.parametrize("name", [name for name in ZOO if name not in WEIGHTS_ALONE])
def test_macs_are_those_of_the_kernels_that_torch_runs(name):
    model = made(name)
    graph = ChannelGraph.of(model, IMAGES)
    with torch.no_grad(), counted() as counter:
        model(torch.randn(1, 3, 16, 16))
    assert graph.macs(graph.without([])) == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ZOO])
def test_macs_are_those_of_the_exported_file_before_and_after_a_cut(name, artifact_of):
    model = made(name)
    graph = graph_of(model)
    whole, kept = graph.without([]), cut(graph)
    assert not kept.all()
    assert graph.macs(whole) == macs_of_file(model, artifact_of)
    assert graph.macs(kept) == macs_of_file(remove(model, graph, kept), artifact_of)


def test_products_of_two_activations_count():
    """Of sixteen tokens: queries by keys and weights by values, four heads of width four."""
    with_products, without = (ChannelGraph.of(made_of(mix), IMAGES) for mix in (Heads(by_matmul), NoProducts()))
    macs = [graph.macs(graph.without([])) for graph in (with_products, without)]
    assert macs[0] - macs[1] == 2 * 4 * 16 * 16 * 4


class NoProducts(Heads):
    def __init__(self):
        super().__init__(lambda q, k, v: q + k + v)


def made_of(mix):
    return Tokens(mix).eval().requires_grad_(False)


def test_elementwise_products_do_not_count():
    model = made("gated")
    graph = ChannelGraph.of(model, IMAGES)
    convolutions = 14 * 14 * 16 * 27 + 12 * 12 * 16 * 9
    assert graph.macs(graph.without([])) == convolutions + 2 * 16 * 8 + 16 * 5


def test_a_share_of_the_macs_is_one_of_the_exported_file_where_attention_is_most_of_it(artifact_of, context_of):
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Conv2d(3, 16, 1), Heads(by_matmul), nn.Linear(16, 5)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)  # 256 tokens: 8 million MACs of products, 0.3 of layers
            return self.head((x + self.mix(x)).mean(1))

    torch.manual_seed(0)
    model = Long().eval()
    artifact = artifact_of(model)
    settings = Prune(importance="magnitude", keep_macs=0.5, keep_channels_min=1)
    student = settings.apply(artifact, settings.decide(artifact, context_of(model)))
    share = macs_of_file(student.model, artifact_of) / macs_of_file(model, artifact_of)
    assert 0.25 < share <= 0.5


def test_free_sizes_count_as_one_on_both_sides():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.head = nn.Embedding(30, 16), Heads(by_matmul), nn.Linear(16, 5)
            self.first = nn.Parameter(torch.randn(1, 1, 16))

        def forward(self, tokens):
            x = self.table(tokens)
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
            return self.head((x + self.mix(x)).mean(1))

    torch.manual_seed(0)
    model = Words().eval().requires_grad_(False)
    inputs = (TensorSpec(name="tokens", shape=("batch", "length"), dtype="int64"),)
    graph = ChannelGraph.of(model, inputs)
    artifact = Artifact(model, inputs, (TensorSpec(name="out", shape=("batch", 5)),))
    layers = 2 * 16 * 48 + 2 * 16 * 16 + 16 * 5  # of two tokens: the first one and one more
    assert graph.macs(graph.without([])) == layers + 2 * 4 * 2 * 2 * 4
    assert count(lower(artifact, 18))[1] == graph.macs(graph.without([]))
