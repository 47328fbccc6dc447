"""Which pass last changed a layer: told by what layers hold, kept in the file, found again by a layer's name."""

import copy
from collections import OrderedDict

import onnx_ir
import pytest
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.changed import with_origins
from kdc.core.origins import KEY, origin_of, origins_of, write_origins


def artifact(model, origins=()):
    return Artifact(model, (), (), origins=origins)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(first=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), act=nn.ReLU(), last=nn.Linear(8, 4))
    )


def test_a_layer_that_holds_the_same_is_nobodys():
    model = network()
    assert with_origins(artifact(model), artifact(copy.deepcopy(model)), "prune").origins == ()


def test_the_layers_that_a_pass_changed_are_its_own_and_the_others_stay_whose_they_were():
    before = network()
    after = copy.deepcopy(before)
    after.last = nn.Linear(6, 4)
    found = with_origins(artifact(before, (("norm", "search"), ("last", "search"))), artifact(after), "prune")
    assert found.origins == (("norm", "search"), ("last", "prune"))
    assert found.model is after


def test_a_layer_that_only_moved_stays_whose_it_was_and_a_new_one_is_the_passes():
    before = network()
    moved = nn.Module()
    moved.stages = nn.ModuleList([nn.Sequential(OrderedDict(first=copy.deepcopy(before.first)))])
    moved.exits = nn.ModuleList([nn.Linear(8, 4)])
    found = with_origins(artifact(before, (("first", "prune"),)), artifact(moved), "route")
    assert found.origins == (("stages.0.first", "prune"), ("exits.0", "route"))


def test_of_two_layers_that_hold_the_same_each_keeps_its_own():
    twins = nn.Sequential(OrderedDict(a=nn.BatchNorm1d(4), b=nn.BatchNorm1d(4)))
    before = artifact(twins, (("b", "prune"),))
    assert with_origins(before, artifact(copy.deepcopy(twins)), "distill").origins == (("b", "prune"),)


def test_a_class_of_a_pass_around_the_same_weights_is_a_change_and_a_bare_module_is_none():
    from passes.quantize.quantizers import QuantizedLayer

    before = nn.Sequential(OrderedDict(fc=nn.Linear(8, 4)))
    traced, quantized = nn.Module(), nn.Module()
    traced.fc = nn.Module()
    traced.fc.weight, traced.fc.bias = before.fc.weight, before.fc.bias
    assert with_origins(artifact(before), artifact(traced), "route").origins == ()
    aten = torch.ops.aten
    quantized.fc = QuantizedLayer(
        aten.linear.default,
        (),
        before.fc.weight,
        before.fc.bias,
        per_channel=True,
        bits=8,
        clip_by_mse=False,
        source=None,
    )
    assert dict(with_origins(artifact(before), artifact(quantized), "quantize").origins)["fc"] == "quantize"


def test_a_model_that_is_no_torch_model_keeps_what_is_known():
    file = artifact(onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10), (("a", "prune"),))
    assert with_origins(artifact(network()), file, "export") is file


def test_a_file_tells_what_was_written_in_it():
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10)
    assert origins_of(model) == {}
    write_origins(model, {})
    assert KEY not in model.metadata_props
    write_origins(model, {"b": "prune", "a": "search"})
    assert model.metadata_props[KEY] == '{"a":"search","b":"prune"}'
    assert origins_of(model) == {"a": "search", "b": "prune"}


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "3"])
def test_a_file_in_which_something_else_stands_tells_nothing(text):
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[]), ir_version=10)
    model.metadata_props[KEY] = text
    assert origins_of(model) == {}


def test_a_layer_is_found_by_its_name_by_what_is_around_it_and_behind_a_stages_prefix():
    origins = {"blocks.0": "search", "blocks.0.conv": "prune", "stage_1.exit.fc": "route"}
    assert origin_of("blocks.0.conv", origins) == "prune"
    assert origin_of("blocks.0.conv.weight_quantizer", origins) == "prune"
    assert origin_of("blocks.0.other", origins) == "search"
    assert origin_of("blocks.01", origins) is None
    assert origin_of("stage_1.stage.blocks.0.conv", origins) == "prune"
    assert origin_of("stage_2.blocks.0.conv", origins) == "prune"
    assert origin_of("stage_1.exit.fc", origins) == "route"
