"""Where models can be cut, and that cutting changes nothing."""

import copy
import dataclasses

import pytest
import torch
from lowering_zoo import ZOO, images
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from passes.quantize import Quantize
from passes.quantize.quantizers import QuantizedLayer
from passes.route.stages import cuts, find, graph_of, split

IMAGE = (TensorSpec(name="image", shape=("batch", 1, 8, 8)),)


def names(model, inputs=IMAGE):
    return [cut.name for cut in cuts(graph_of(model.eval(), inputs), inputs)]


def in_a_row(stages, *inputs):
    with torch.no_grad():
        for stage in stages:
            inputs = (stage(*inputs),)
    return inputs[0]


def seeded(model):
    torch.manual_seed(0)
    return model().eval()


def test_a_plain_stack_is_cut_behind_every_layer_but_the_last():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    found = cuts(graph_of(model.eval(), IMAGE), IMAGE)
    assert [cut.name for cut in found] == ["0", "4", "7"]
    assert [cut.shape for cut in found] == [(4, 3, 3), (8,), (6,)]  # behind pools, activations and flattening
    # 36*36 + 288 + 48 + 18
    macs = [36 * 36, 36 * 36 + 288, 36 * 36 + 288 + 48]
    assert [cut.share for cut in found] == pytest.approx([m / (macs[-1] + 18) for m in macs])


def test_a_residual_net_is_never_cut_inside_a_block(model):
    assert names(model) == ["stem.0", "blocks.0.conv2", "blocks.1.shortcut", "blocks.2.conv2"]


def test_a_quantized_graph_is_cut_where_its_float_model_is_and_behind_quantizers(artifact, context_of):
    quantized = Quantize().apply(artifact, Quantize().decide(artifact, context_of()))
    graph = graph_of(quantized.model, IMAGE)
    assert graph is quantized.model
    found = cuts(graph, IMAGE)
    assert [cut.name for cut in found] == names(artifact.model)
    assert all("quantizers" in cut.node or "view" in cut.node for cut in found)
    stages = split(graph, [cut.node for cut in found], IMAGE)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(in_a_row(stages, x), quantized.model(x))
    kept = {name for stage in stages for name in stage.state_dict()}
    assert kept == set(quantized.model.state_dict())


def test_stages_of_a_model_with_weights_of_7_bits_have_7_bits(artifact, context_of):
    context = context_of()
    scheme = context.device.quantization.model_copy(update={"weight_bits": 7})
    context = dataclasses.replace(context, device=context.device.model_copy(update={"quantization": scheme}))
    graph = Quantize().apply(artifact, Quantize().decide(artifact, context)).model
    stages = split(graph, [cut.node for cut in cuts(graph, IMAGE)], IMAGE)
    layers = [module for stage in stages for module in stage.modules() if isinstance(module, QuantizedLayer)]
    assert len(layers) == len([module for module in graph.modules() if isinstance(module, QuantizedLayer)])
    for layer in layers:
        assert int(layer.lowered().weight.values.abs().max()) == 63


@pytest.mark.parametrize("name", sorted(ZOO))
def test_stages_in_a_row_are_the_model_to_the_bit(name):
    model = seeded(ZOO[name])
    inputs = (TensorSpec(name="image", shape=("batch", 3, 16, 16)),)
    graph = graph_of(model, inputs)
    stages = split(graph, [cut.node for cut in cuts(graph, inputs)], inputs)
    with torch.no_grad():
        for count in (1, 7):
            assert torch.equal(in_a_row(stages, images(count)), graph(images(count)))


def test_stages_have_weights_of_their_own_under_the_names_of_the_model(model):
    graph = graph_of(model, IMAGE)
    stages = split(graph, [cut.node for cut in cuts(graph, IMAGE)], IMAGE)
    assert {name for stage in stages for name in stage.state_dict()} == set(graph.state_dict())
    with torch.no_grad():
        for stage in stages:
            for parameter in stage.parameters():
                parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in graph.parameters() if parameter.dim() > 1)


def test_the_batch_size_that_a_later_stage_needs_is_taken_from_its_own_input(model):
    graph = graph_of(model, IMAGE)  # its last view is by the size of the first input
    assert any("sym_size" in str(node.target) for node in graph.graph.nodes)
    stages = split(graph, [find(cuts(graph, IMAGE), "blocks.0").node], IMAGE)
    for batch in (1, 2, 9):
        x = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            assert torch.equal(in_a_row(stages, x), graph(x))


def test_a_copy_of_stages_prints_as_they_do(model):
    graph = graph_of(model, IMAGE)
    found = cuts(graph, IMAGE)
    stages = nn.ModuleList(split(graph, [found[0].node], IMAGE))
    assert str(copy.deepcopy(stages)) == str(stages)
    assert str(nn.ModuleList(split(graph, [found[0].node], IMAGE))) == str(stages)
    assert str(nn.ModuleList(split(graph, [found[1].node], IMAGE))) != str(stages)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 + i, 1, 3, padding=1) for i in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x.mean((2, 3))


class AllAlive(nn.Module):
    """Every layer reads the outputs of all before it, and the end reads all."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x):
        a = self.a(x)
        b = self.b(x + a)
        c = self.c(x * a + b)
        return self.head(torch.cat([x, a, b, c], 1).flatten(1))


def test_a_densely_connected_network_can_be_cut_only_where_one_tensor_holds_all():
    assert names(seeded(Dense)) == ["layers.0", "layers.1"]  # behind the concatenations
    found = cuts(graph_of(seeded(AllAlive), IMAGE), IMAGE)
    assert [cut.name for cut in found] == ["c"]


class NoCut(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x):
        return self.a(x.flatten(1)) + self.b(x.flatten(1))


@pytest.mark.parametrize("build", [NoCut, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))])
def test_a_model_without_a_place_for_an_exit_is_refused(build):
    with pytest.raises(ModelError, match=r"cannot be split into stages: (?s:.)*leave `route` out"):
        names(seeded(build))


def test_a_part_of_the_model_means_behind_all_of_it(model):
    found = cuts(graph_of(model, IMAGE), IMAGE)
    assert find(found, "blocks.0.conv2").name == "blocks.0.conv2"
    assert find(found, "blocks.0").name == "blocks.0.conv2"
    assert find(found, "blocks.1").name == "blocks.1.shortcut"
    assert find(found, "blocks").name == "blocks.2.conv2"
    assert find(found, "stem").name == "stem.0"


@pytest.mark.parametrize("wrong", ["blocks.0.conv1", "block.0", "head", "blocks.1.conv2", ""])
def test_a_name_behind_which_no_exit_can_stand_is_answered_with_those_that_can(model, wrong):
    found = cuts(graph_of(model, IMAGE), IMAGE)
    with pytest.raises(ModelError, match=r"stem.0, blocks.0.conv2, blocks.1.shortcut, blocks.2.conv2"):
        find(found, wrong)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, a, b):
        return self.third(torch.relu(self.second(torch.relu(self.first(a)) + b)))


def test_a_second_input_counts_as_alive_until_it_is_read():
    inputs = (TensorSpec(name="a", shape=("batch", 4)), TensorSpec(name="b", shape=("batch", 8)))
    model = seeded(TwoInputs)
    graph = graph_of(model, inputs)
    found = cuts(graph, inputs)
    assert [cut.name for cut in found] == ["first", "second"]
    assert found[0].node.startswith("add")
    a, b = torch.randn(3, 4), torch.randn(3, 8)
    stages = split(graph, [cut.node for cut in found], inputs)
    with torch.no_grad():
        assert torch.equal(in_a_row(stages, a, b), model(a, b))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.relu(self.layer(torch.relu(self.layer(x.flatten(1))))))


def test_a_layer_that_runs_twice_has_a_place_behind_each_run_and_one_weight():
    model = seeded(Twice)
    graph = graph_of(model, IMAGE)
    found = cuts(graph, IMAGE)
    assert [cut.name for cut in found] == ["layer", "layer#2"]
    stages = nn.ModuleList(split(graph, [cut.node for cut in found], IMAGE))
    assert sum(p.numel() for p in stages.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_model_of_several_outputs_is_refused():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.a(x.flatten(1))
            return y, self.b(y)

    with pytest.raises(ModelError, match="more than one tensor"):
        names(seeded(Both))


def test_finding_cuts_leaves_a_graph_in_training_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    graph = torch.fx.symbolic_trace(model.train())
    before = copy.deepcopy(graph.state_dict())
    (cut,) = cuts(graph, IMAGE)
    assert cut.name == "0"
    assert graph.training
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.state_dict().items())
    stages = split(graph, [cut.node], IMAGE)
    assert all(stage.training for stage in stages)


def test_an_artifact_knows_two_cuts_apart(model):
    graph = graph_of(model, IMAGE)
    found = cuts(graph, IMAGE)
    digests = {
        Artifact(nn.ModuleList(split(graph, [cut.node], IMAGE)), IMAGE, ()).digest() for cut in (*found, found[0])
    }
    assert len(digests) == len(found)
