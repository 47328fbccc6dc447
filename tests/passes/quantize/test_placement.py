import pytest
import torch
from lowering_zoo import ZOO, images
from torch import nn

from kdc.core.spec import TensorSpec
from passes.quantize.graph import plain_graph
from passes.quantize.placement import candidates, place
from passes.quantize.quantizers import QuantizedLayer, Quantizer

IMAGE = TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32")


def modules(graph, kind):
    return {name: module for name, module in graph.named_modules() if isinstance(module, kind)}


def calls(graph, kind):
    return [n for n in graph.graph.nodes if n.op == "call_module" and isinstance(graph.get_submodule(n.target), kind)]


def quantizer_behind(graph, prefix):
    """The quantizer that reads the nodes whose names begin so."""
    return {n.target for n in calls(graph, Quantizer) if n.args[0].name.startswith(prefix)}


@pytest.mark.parametrize("name", ZOO)
def test_the_plain_graph_computes_what_the_model_computes_and_trains(name, lowered):
    artifact = lowered.float(name)
    graph = plain_graph(artifact.model, artifact.inputs)
    with torch.no_grad():
        expected = artifact.model(images(6))
        for training in (False, True):  # dropout is gone and BatchNorm keeps its statistics
            torch.testing.assert_close(graph.train(training)(images(6)), expected, rtol=1e-4, atol=1e-5)
    graph(images(6)).square().sum().backward()
    assert all(p.grad is not None for p in graph.parameters() if p.requires_grad)


def test_the_plain_graph_shares_no_weight_with_the_model(lowered):
    artifact = lowered.float("plain")
    before = artifact.digest()
    graph = plain_graph(artifact.model, artifact.inputs)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.zero_()
    assert artifact.digest() == before


def test_batch_norms_are_folded_and_parameters_keep_their_names(lowered):
    artifact = lowered.float("plain")
    names = set(plain_graph(artifact.model, artifact.inputs).state_dict())
    assert names == {f"{p}.{q}" for p in ("conv1.0", "conv2.0", "head") for q in ("weight", "bias")}


@pytest.mark.parametrize("name", ZOO)
def test_every_quantized_layer_reads_a_quantized_tensor(name, lowered):
    graph = lowered.quantized(name).model
    layers = calls(graph, QuantizedLayer)
    assert len(layers) == len(lowered.decision(name).layers) > 0
    assert all(isinstance(graph.get_submodule(node.args[0].target), Quantizer) for node in layers)


@pytest.mark.parametrize("name", ["plain", "residual", "separable", "concat", "excite", "signal"])
def test_every_convolution_writes_integers_behind_its_relu(name, lowered):
    graph = lowered.quantized(name).model
    for node in calls(graph, QuantizedLayer):
        if "conv" not in str(graph.get_submodule(node.target).operator):
            continue
        reader = next(iter(node.users))
        if "relu" in str(reader.target):
            reader = next(iter(reader.users))
        assert len(node.users) == 1
        assert reader in calls(graph, Quantizer)


@pytest.mark.parametrize("name", ZOO)
def test_outputs_stay_float(name, lowered):
    graph = lowered.quantized(name).model
    assert not set(graph.graph.output_node().all_input_nodes) & set(calls(graph, Quantizer))


def test_tensors_that_are_concatenated_share_one_quantizer(lowered):
    graph = lowered.quantized("concat").model
    cat = next(n for n in graph.graph.nodes if str(n.target) == "aten.cat.default")
    assert len({n.target for n in (*cat.args[0], *cat.users)}) == 1


def test_a_max_pool_and_a_flatten_keep_their_input_s_quantizer(lowered):
    graph = lowered.quantized("plain").model
    assert (
        quantizer_behind(graph, "flatten")
        == quantizer_behind(graph, "max_pool2d_1")
        == quantizer_behind(graph, "relu__1")
    )


def test_a_tensor_that_two_operators_read_has_one_quantizer(lowered):
    graph = lowered.quantized("residual").model
    names = [n.args[0].name for n in calls(graph, Quantizer)]
    assert len(names) == len(set(names))


def test_additions_of_float_tensors_and_attention_stay_float(lowered):
    graph = lowered.quantized("attention").model
    for node in graph.graph.nodes:
        if any(word in str(node.target) for word in ("aten.add", "layer_norm", "attention")):
            assert not set(node.all_input_nodes) & {
                n for n in calls(graph, Quantizer) if n.args[0].name != "conv2d" and "transpose" not in n.args[0].name
            }


def test_where_kernels_give_integers_alone_every_linear_layer_writes_them_behind_its_relu(lowered):
    artifact = lowered.float("perceptron")
    graph = plain_graph(artifact.model, artifact.inputs)
    layers = candidates(graph)
    assert len(layers) == 3
    for linear_outputs in (False, True):
        resident = place(graph, set(layers), linear_outputs=linear_outputs).resident
        readers = [(node, next(iter(node.users))) for node in layers.values()]
        written = [reader if "relu" in str(reader.target) else node for node, reader in readers]
        assert [node in resident for node in written] == [linear_outputs] * 3


def test_layers_that_share_a_weight_or_are_kept_float_are_not_quantized(lowered):
    artifact = lowered.float("residual")
    graph = plain_graph(artifact.model, artifact.inputs)
    assert set(candidates(graph)) == {"stem.0", "shortcut.0", "head"}
    assert set(place(graph, {"stem.0", "head"}).layers.values()) == {"stem.0", "head"}


def test_a_change_in_place_is_seen_by_later_readers():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            z = y.relu_()
            return y + 2 * z

    model = InPlace().eval()
    graph = plain_graph(model, [IMAGE])
    with torch.no_grad():
        torch.testing.assert_close(graph(images(2)), model(images(2)))
    assert not any("relu_" in str(n.target) for n in graph.graph.nodes)


def test_an_activation_grid_stands_in_the_state_dict_under_its_tensor_s_name(lowered):
    state = lowered.quantized("plain").model.state_dict()
    for name in lowered.decision("plain").activations:
        for part in ("base_scale", "zero_point", "gain"):
            assert f"activation_quantizers.q_{name}.{part}" in state
    assert {"conv1.0.weight", "conv1.0.bias", "head.weight"} <= set(state)
