"""Heads give logits, are lowered to the same function in fewer operators, and are the same each time they are made."""

import onnx_ir
import pytest
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from passes.export.lower import Lowerable, lower
from passes.route import Exit, Exits
from passes.route.heads import Head, build


def settled(head):
    """A head whose statistics and weights are not those it was made with."""
    torch.manual_seed(1)
    for module in head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    head.temperature = 1.7
    return head.eval()


FEATURES = [
    ((6,), False),
    ((6, 9), False),
    ((6, 5, 7), False),
    ((6, 4, 4, 4), False),
    ((9, 6), True),
    ((5, 7, 6), True),
]


@pytest.mark.parametrize(("shape", "channels_last"), FEATURES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_lowered_head_is_the_head(shape, channels_last, kind):
    head = settled(Head("a", shape, 3, kind=kind, channels=4, channels_last=channels_last))
    x = torch.randn(5, *shape)
    expected = head(x)
    assert expected.shape == (5, 3)
    lowered = head.lowered()
    torch.testing.assert_close(lowered(x), expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in lowered.modules())
    assert lowered.temperature == 1
    torch.testing.assert_close(head(x), expected, rtol=0, atol=0)  # it is as it was


@pytest.mark.parametrize(("shape", "channels_last"), FEATURES)
def test_a_linear_head_is_one_linear_layer_of_the_mean_over_all_positions(shape, channels_last):
    head = settled(Head("a", shape, 3, channels_last=channels_last))
    x = torch.randn(5, *shape)
    flat = (x if channels_last else x.movedim(1, -1)).reshape(5, -1, 6)
    torch.testing.assert_close(head(x), head.linear(flat.mean(1)) / 1.7, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "operators"), [
    ("linear", ["GlobalAveragePool", "Flatten|Reshape", "Gemm"]),
    ("conv", ["Conv", "Relu", "GlobalAveragePool", "Flatten|Reshape", "Gemm"]),
])  # fmt: skip
def test_in_the_file_a_head_has_no_more_operators_than_it_must(kind, operators):
    head = settled(Head("a", (6, 8, 8), 3, kind=kind))
    assert isinstance(head, Lowerable)
    specs = (TensorSpec(name="x", shape=("batch", 6, 8, 8)),), (TensorSpec(name="y", shape=("batch", 3)),)
    model: onnx_ir.Model = lower(Artifact(nn.Sequential(head), *specs), 21)
    found = [node.op_type for node in model.graph if node.op_type != "Constant"]
    assert len(found) == len(operators)
    assert all(op in allowed.split("|") for op, allowed in zip(found, operators, strict=True))


def test_one_sample_s_logits_do_not_depend_on_the_others_in_its_batch():
    head = settled(Head("a", (6, 8, 8), 3, kind="conv"))
    x = torch.randn(7, 6, 8, 8)
    together = head(x)
    for i in range(7):
        torch.testing.assert_close(head(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-6)


def exit_at(after, **changes):
    return Exit(**{"after": after, "head": "linear", "channels": 8, "threshold": 0.9, "temperature": 1.0, **changes})


def test_a_decision_applied_twice_gives_the_same_bytes(artifact):
    decision = Exits(exits=(exit_at("stem"), exit_at("blocks.0", head="conv", channels=5, temperature=1.5)))
    before, rng = artifact.digest(), torch.random.get_rng_state()
    one, two = (artifact.with_model(build(artifact, decision)) for _ in range(2))
    assert one.digest() == two.digest()
    assert artifact.digest() == before
    assert torch.equal(rng, torch.random.get_rng_state())
    assert not one.model.training
    assert one.model.thresholds == (0.9, 0.9)
    assert [head.temperature for head in one.model.exits] == [1.0, 1.5]
    assert one.model.exits[1].conv.out_channels == 5


@pytest.mark.parametrize("places", [("blocks.1", "stem"), ("stem", "stem.0")])
def test_exits_out_of_order_or_twice_at_one_place_are_refused(artifact, places):
    decision = Exits(exits=tuple(exit_at(place) for place in places))
    with pytest.raises(ModelError, match=r"not in the model's order, each once(?s:.)*in the order stem.0"):
        build(artifact, decision)


def test_the_last_answer_of_a_cascade_is_the_model_s_own(artifact):
    cascade = build(artifact, Exits(exits=(exit_at("stem"), exit_at("blocks.0"))))
    x = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(cascade.answers(x)[-1], artifact.model(x), rtol=1e-4, atol=1e-4)


def test_a_decision_without_exits_is_a_copy_of_the_model(artifact):
    model = build(artifact, Exits(exits=()))
    assert type(model) is type(artifact.model)
    assert model is not artifact.model
    assert artifact.with_model(model).digest() == artifact.digest()


def test_exits_need_logits(artifact):
    spec = artifact.outputs[0].model_copy(update={"shape": ("batch", 4, 8)})
    with pytest.raises(ModelError, match="logits"):
        build(Artifact(artifact.model, artifact.inputs, (spec,)), Exits(exits=(exit_at("stem"),)))
