"""What is not understood is frozen with its reason; it never crashes and is never pruned wrongly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.core.spec import TensorSpec
from passes.prune import Kept, Prune
from passes.prune.channels import ChannelGraph
from passes.prune.probe import probe
from passes.prune.surgery import check, remove

IMAGES = (TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32"),)


class Body(nn.Module):
    """A layer, something odd, and a head: `between` takes the layer's [N, 16, 16, 16] to [N, 16]."""

    def __init__(self, between, width=16, **parts):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(width, 5)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.between(self, self.layer(x)))


def graph_of(model, inputs=IMAGES):
    return probe(model.eval(), ChannelGraph.of(model, inputs), inputs)


def mean(x):
    return x.mean((2, 3))


ODD = {
    "a part that is no even division": (lambda m, x: mean(x[:, :5]) @ torch.ones(5, 16), "part"),
    "one channel taken": (lambda m, x: mean(x) + mean(x)[:, :1] * x[:, 3].mean((1, 2)).unsqueeze(1), "takes"),
    "uneven pieces": (lambda m, x: mean(torch.cat(x.split([5, 11], 1)[::-1], 1)), "unequal"),
    "a mean over channels": (lambda m, x: mean(x * x.mean(1, keepdim=True)), "reduces"),
    "a softmax over channels": (lambda m, x: mean(x.softmax(1)), "along"),
    "channels padded on": (lambda m, x: mean(F.pad(x, (0, 0, 0, 0, 0, 4)))[:, :16], "adds channels"),
    "channels in another order": (lambda m, x: mean(x[:, torch.arange(15, -1, -1)]), "not followed"),
    "sorted channels": (lambda m, x: mean(x).sort(1).values, "not followed"),
    "rolled channels": (lambda m, x: mean(x.roll(1, 1)), "not followed"),
    "a constant of full width": (lambda m, x: mean(x * torch.arange(16.0).view(1, 16, 1, 1)), "fixed width"),
    "a reshape by number": (lambda m, x: mean(x).view(-1, 4, 4).flatten(1), "cannot change"),
    "halves by number": (lambda m, x: F.pad(mean(x[:, :8]) * mean(x[:, 8:]), (0, 8)), "adds"),
    "halves by number, joined": (lambda m, x: (mean(x[:, :8]) * mean(x[:, 8:])).repeat(1, 2), "not followed"),
    "a number computed from the width": (lambda m, x: mean(x) * x.shape[1] ** -0.5, "computes with its width"),
    "another way for another width": (lambda m, x: mean(x).relu() if x.shape[1] == 16 else mean(x), "another way"),
    "a dimension merged with the channels": (lambda m, x: x[:, :, :4, 0].flatten(1).unfold(1, 16, 16)[:, 0], "follow"),
    "the batch merged with the channels": (lambda m, x: mean(x).reshape(-1).reshape(-1, 16), "merges"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_followed_is_frozen_with_its_reason(name):
    between, reason = ODD[name]
    graph = graph_of(Body(between))
    [group] = [group for group in graph.groups if "layer" in group.layers]
    assert not group.prunable
    assert reason in group.reason


def test_a_decision_by_hand_cannot_remove_what_trying_found_to_be_fixed(artifact_of):
    artifact = artifact_of(Body(ODD["a number computed from the width"][0]).eval())
    with pytest.raises(ModelError, match="computes with its width"):
        Prune().apply(artifact, Kept(kept={"layer": tuple(range(8))}))


def test_layers_before_and_after_a_frozen_one_are_still_pruned():
    model = Body(lambda m, x: mean(m.last(torch.fft.fft2(m.odd(x)).real)), last=None)
    model.odd, model.last = nn.Conv2d(16, 8, 3), nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3))
    found = {group.name: group.prunable for group in graph_of(model).groups}
    assert found == {"layer": True, "odd": False, "last.0": True, "last.2": True, "head": False}


def test_a_model_without_anything_to_prune_stays_as_it_is(artifact_of, context_of):
    artifact, events = artifact_of(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)).eval()), []
    decision = Prune(samples=8).decide(artifact, context_of(artifact.model, events=events))
    assert decision.kept == {}
    assert any(isinstance(event, Note) for event in events)
    assert Prune().apply(artifact, decision).digest() == artifact.digest()


def test_the_reasons_are_told(artifact_of, context_of):
    model, events = Body(ODD["a softmax over channels"][0]).eval(), []
    model.head = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    artifact = artifact_of(model)
    Prune(samples=8).decide(artifact, context_of(model, events=events))
    assert any(isinstance(event, Note) and "layer (" in event.text and "along" in event.text for event in events)


def test_embeddings_of_tokens_lose_width_and_no_entry():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.hidden, self.head = nn.Embedding(40, 16), nn.Linear(16, 12), nn.Linear(12, 5)

        def forward(self, tokens):
            return self.head(F.gelu(self.hidden(self.table(tokens))).mean(1))

    model, inputs = Tokens(), (TensorSpec(name="tokens", shape=("batch", 7), dtype="int64"),)
    graph = graph_of(model, inputs)
    assert {g.name: (g.prunable, g.size) for g in graph.groups if g.prunable} == {
        "table": (True, 16),
        "hidden": (True, 12),
    }
    pruned = remove(model, graph, graph.without([graph.groups[0].units[3]]))
    check(model, pruned, inputs)
    assert pruned.table.weight.shape == (40, 15)
    assert pruned.table.embedding_dim == 15


def test_weights_under_a_parametrization_are_frozen():
    model = Body(lambda m, x: mean(m.normed(x)), normed=nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3)))
    graph = graph_of(model)
    assert not any("normed" in layer for group in graph.groups if group.prunable for layer in group.layers)
