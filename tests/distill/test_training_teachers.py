"""`training.teachers`: who is learned from instead of the recipe's own teacher."""

import copy
import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdc.distill.loop import train
from kdc.distill.settings import SoftTargets, Training
from kdc.distill.several import Several
from kdc.distill.sources import taught
from kdc.distill.strategy_settings.several import Combined
from kdc.distill.teacher_answers import digest_of
from kdc.distill.teacher_settings import BuiltSource, OnnxSource

CODE = """
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
"""
SHORT = Training(epochs=2, batch=32, objectives=(SoftTargets(),))


def student() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def other(small_context) -> nn.Module:
    model = copy.deepcopy(small_context.teacher)
    with torch.no_grad():
        model[1].weight.neg_()
    return model


@pytest.fixture
def source(tmp_path: Path, other: nn.Module) -> BuiltSource:
    (tmp_path / "other.py").write_text(CODE)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    return BuiltSource(build=f"{tmp_path / 'other.py'}:build", weights=tmp_path / "other.safetensors")


def learned(context, training: Training, work: Path) -> torch.Tensor:
    model = train(student(), dataclasses.replace(context, work=work), training)
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


def test_a_named_teacher_teaches_in_the_place_of_the_recipes_own(small_context, other, source, tmp_path):
    named = learned(small_context, SHORT.model_copy(update={"teachers": (source,)}), tmp_path / "named")
    put_in = learned(dataclasses.replace(small_context, teacher=other), SHORT, tmp_path / "put-in")
    own = learned(small_context, SHORT, tmp_path / "own")
    assert torch.equal(named, put_in)
    assert not torch.equal(named, own)


def test_an_onnx_file_teaches_as_the_model_of_the_same_weights(small_context, other, tmp_path):
    path = tmp_path / "other.onnx"
    value, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in other.state_dict().items()]
    nodes = [("Flatten", ["x"], "flat", {}), ("Gemm", ["flat", "1.weight", "1.bias"], "y", {"transB": 1})]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, takes, [gives], **more) for kind, takes, gives, more in nodes], "other",
        [value("x", float32, ["n", 1, 6, 6])], [value("y", float32, ["n", 3])], weights,
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    training = SHORT.model_copy(update={"teachers": (OnnxSource(onnx=path),)})
    asked = learned(small_context, training, tmp_path / "asked")
    put_in = learned(dataclasses.replace(small_context, teacher=other), SHORT, tmp_path / "put-in")
    torch.testing.assert_close(asked, put_in, rtol=1e-4, atol=1e-5)


def test_several_teachers_answer_together_and_are_known_by_all_of_their_digests(small_context, source, tmp_path):
    together = taught(small_context, ("own", source)).teacher
    assert isinstance(together, Several)
    assert digest_of(together) != digest_of(taught(small_context, (source, "own")).teacher)
    training = SHORT.model_copy(update={"teachers": ("own", source), "strategies": (Combined(mean_of="logits"),)})
    mean = learned(small_context, training, tmp_path / "mean")  # the two are each other's negative: nothing to tell
    flat = copy.deepcopy(small_context.teacher)
    with torch.no_grad():
        flat[1].weight.zero_()
    expected = learned(dataclasses.replace(small_context, teacher=flat), SHORT, tmp_path / "flat")
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
