"""Teachers from files and code: the same answers as the module they were made of, and out of memory when they should be."""

import dataclasses
import gc
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.distill import sources
from kdc.distill.sources import code, files, load_source
from kdc.distill.teacher import predict
from kdc.distill.teacher_answers import TeacherAnswers, digest_of
from kdc.distill.teacher_settings import AskedSource, BuiltSource, OnnxSource, TorchScriptSource
from kdc.distill.views import View

BUILD = """
from torch import nn


def build(width=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width))
"""
INDEX = torch.arange(20)


def view() -> View:
    images = torch.randn((20, 1, 6, 6), generator=torch.Generator().manual_seed(3))
    return View(Split((images,), torch.arange(20) % 3), "0")


def onnx_file(teacher: nn.Module, path: Path, batch: object = "n", external: bool = False) -> Path:
    weight, bias = (parameter.detach().numpy() for parameter in (teacher[1].weight, teacher[1].bias))
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1)],
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(
        model, path, save_as_external_data=external, location="weights.bin" if external else None, size_threshold=0
    )
    return path


def same_answers(context: Context, teacher: nn.Module) -> None:
    seen = view()
    with TeacherAnswers(context, teacher) as answers:
        found = answers.of(seen)[INDEX]
    torch.testing.assert_close(found, predict(context.teacher, seen.samples), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", ["n", 1, 8])
def test_an_onnx_file_answers_as_its_module_with_any_batch(small_context, tmp_path, batch):
    path = onnx_file(small_context.teacher, tmp_path / "teacher.onnx", batch)
    teacher = load_source(OnnxSource(onnx=path), small_context)
    same_answers(small_context, teacher)
    assert teacher.predict_only
    assert not list(teacher.parameters())


def test_a_torchscript_file_answers_as_its_module(small_context, tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.trace(small_context.teacher, torch.zeros(2, 1, 6, 6)), tmp_path / "teacher.ts")
    source = TorchScriptSource(torchscript=tmp_path / "teacher.ts")
    with pytest.raises(ModelError, match="can write files"):
        load_source(source, small_context)
    teacher = load_source(source, dataclasses.replace(small_context, allow_torchscript=True))
    same_answers(small_context, teacher)
    assert teacher.predict_only
    assert not list(teacher.parameters())


@pytest.mark.parametrize("apart", [False, True])
def test_a_built_teacher_answers_with_its_weights(small_context, tmp_path, apart):
    (tmp_path / "net.py").write_text(BUILD)
    save_file(small_context.teacher.state_dict(), tmp_path / "w.safetensors")
    source = BuiltSource(build=f"{tmp_path / 'net.py'}:build", weights=tmp_path / "w.safetensors", apart=apart)
    teacher = load_source(source, small_context)
    same_answers(small_context, teacher)
    assert getattr(teacher, "predict_only", False) == apart
    assert digest_of(teacher) == load_source(source.model_copy(update={"apart": not apart}), small_context).digest


def test_a_teacher_apart_is_loaded_to_answer_and_gone_before_the_training(small_context, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(BUILD)
    loaded: list[weakref.ref[nn.Module]] = []
    made = sources._made

    def watched(*arguments: object) -> nn.Module:
        model = made(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(sources, "_made", watched)
    source = BuiltSource(build=f"{tmp_path / 'net.py'}:build", apart=True)
    with TeacherAnswers(small_context, load_source(source, small_context)) as answers:
        assert loaded == []
        answers.prepare([view])
        gc.collect()
        assert [reference() for reference in loaded] == [None]
        first = answers.of(view())[INDEX]
    with TeacherAnswers(small_context, load_source(source, small_context)) as answers:
        assert torch.equal(answers.of(view())[INDEX], first)
    assert len(loaded) == 1  # with all answers in the cache it is not loaded at all


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_file_whose_answers_are_all_there_is_not_loaded(small_context, tmp_path, monkeypatch, kind):
    path = tmp_path / f"teacher.{kind}"
    if kind == "onnx":
        source = OnnxSource(onnx=onnx_file(small_context.teacher, path))
    else:
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.save(torch.jit.trace(small_context.teacher, torch.zeros(2, 1, 6, 6)), path)
        source = TorchScriptSource(torchscript=path)
    small_context = dataclasses.replace(small_context, allow_torchscript=True)
    same_answers(small_context, load_source(source, small_context))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    monkeypatch.setattr("torch.jit.load", refuse)
    same_answers(small_context, load_source(source, small_context))


def test_digests_follow_the_bytes_and_not_the_place(small_context, tmp_path):
    first = OnnxSource(onnx=onnx_file(small_context.teacher, tmp_path / "a.onnx"))
    moved = OnnxSource(onnx=onnx_file(small_context.teacher, tmp_path / "b.onnx"))
    other = OnnxSource(onnx=onnx_file(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), tmp_path / "c.onnx"))
    digests = [load_source(source, small_context).digest for source in (first, moved, other)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_beside_an_onnx_file_count(small_context, tmp_path):
    source = OnnxSource(onnx=onnx_file(small_context.teacher, tmp_path / "a.onnx", external=True))
    assert files(source) == (tmp_path / "a.onnx", tmp_path / "weights.bin")
    before = load_source(source, small_context).digest
    same_answers(small_context, load_source(source, small_context))
    content = np.fromfile(tmp_path / "weights.bin", np.uint8)
    content[0] ^= 1
    content.tofile(tmp_path / "weights.bin")
    assert load_source(source, small_context).digest != before
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        load_source(source, small_context)


def test_a_built_teachers_digest_follows_its_code_arguments_weights_and_seed(small_context, tmp_path):
    (tmp_path / "net.py").write_text(BUILD)
    source = BuiltSource(build=f"{tmp_path / 'net.py'}:build", apart=True)
    save_file(small_context.teacher.state_dict(), tmp_path / "w.safetensors")
    digests = [
        load_source(source, small_context).digest,
        load_source(source.model_copy(update={"arguments": {"width": 4}}), small_context).digest,
        load_source(source.model_copy(update={"weights": tmp_path / "w.safetensors"}), small_context).digest,
        load_source(source, dataclasses.replace(small_context, seed=1)).digest,
    ]
    (tmp_path / "net.py").write_text(BUILD + "\n# edited\n")
    digests.append(load_source(source, small_context).digest)
    assert len(set(digests)) == 5


def test_what_the_store_must_know_is_named(tmp_path):
    built = BuiltSource(build="net.py:build", weights=tmp_path / "w.safetensors")
    assert (files(built), code(built)) == ((tmp_path / "w.safetensors",), ("net.py:build",))
    scripted = TorchScriptSource(torchscript=tmp_path / "t.ts")
    assert (files(scripted), code(scripted)) == ((tmp_path / "t.ts",), ())
    asked = AskedSource(ask="remote.py:ask", queries=1)
    assert (files(asked), code(asked)) == ((), ("remote.py:ask",))


@pytest.mark.parametrize("kind", [OnnxSource, TorchScriptSource])
def test_a_file_that_is_not_there_or_is_something_else_is_told(small_context, tmp_path, kind):
    name = next(iter(kind.model_fields))
    small_context = dataclasses.replace(small_context, allow_torchscript=True)
    with pytest.raises(ModelError, match="there is no file"):
        load_source(kind(**{name: tmp_path / "none"}), small_context)
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ModelError, match="text"):
        load_source(kind(**{name: tmp_path / "text"}), small_context)(torch.zeros(1, 1, 6, 6))


def test_inputs_that_an_onnx_file_does_not_take_are_told(small_context, tmp_path):
    teacher = load_source(OnnxSource(onnx=onnx_file(small_context.teacher, tmp_path / "t.onnx")), small_context)
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\); the data have 2"):
        teacher(torch.zeros(1, 1, 6, 6), torch.zeros(1))
    with pytest.raises(ModelError, match="cannot be run"):
        teacher(torch.zeros(1, 1, 6, 6, dtype=torch.float64))
