"""The same cascade as one file a stage, and which form a target gets."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_ir.passes import common
from test_branches import IMAGE, KINDS, LOGITS, exported, one_by_one, proto_bytes, same, sample, simplified

from kdc.core.errors import LawError, TargetError
from kdc.core.spec import DeviceFile, TensorSpec
from passes.build import Build, Target
from passes.export.branches import join
from passes.export.lower import canonical, check
from passes.export.staged import is_branched, split, staged_files, with_free_batch, write
from targets import run_cascade
from targets.device import load_device
from targets.runtime import Port, runtime_of

DEVICE = load_device("cpu-ort")


@functools.cache
def staged(kind):
    return split(simplified(kind).model, (IMAGE,))


@functools.cache
def found_one_by_one(kind):
    return one_by_one(simplified(kind).model, sample(kind)[1])


def decide(artifact, device):
    notes = []
    return Build().decide(artifact, SimpleNamespace(device=device, emit=notes.append)), [note.text for note in notes]


def with_batch(size):
    return DEVICE.model_copy(update={"batch": size})


@pytest.mark.parametrize("kind", KINDS)
def test_stages_decide_as_the_one_file_and_as_torch(kind, tmp_path):
    artifact, x = sample(kind)
    cascade = run_cascade.load(write(staged(kind), tmp_path).parent)
    with torch.no_grad():
        expected = artifact.model.route(x)
    logits, exits = found_one_by_one(kind)
    for size in (1, 64):
        found = [cascade.run([x[start : start + size].numpy()]) for start in range(0, len(x), size)]
        together = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        same(kind, together, expected)
        np.testing.assert_array_equal(together[1], exits)
        np.testing.assert_allclose(together[0], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_stage_is_canonical_and_valid_and_tells_its_types_and_shapes(kind):
    for model, stage in zip(staged(kind).models, staged(kind).plan["stages"], strict=True):
        check(model)
        before = proto_bytes(model)
        canonical(model)
        assert proto_bytes(model) == before
        assert [value.name for value in model.graph.inputs] == stage["inputs"]
        assert [value.name for value in model.graph.outputs] == stage["outputs"]
        for value in (*model.graph.inputs, *model.graph.outputs):
            batch, *sizes = value.shape
            assert str(batch) == "batch"
            assert all(isinstance(size, int) for size in sizes)
            assert value.type is not None


def test_the_plan_of_an_int8_cascade():
    threshold = float(np.float32(sample("int8")[0].model.thresholds[0]))
    assert staged("int8").plan == {
        "inputs": ["image"],
        "outputs": ["logits", "exit"],
        "stages": [
            {
                "inputs": ["image"],
                "outputs": ["stage_1.features", "stage_1.logits", "stage_1.confidence"],
                "logits": "stage_1.logits",
                "confidence": "stage_1.confidence",
                "threshold": threshold,
            },
            {"inputs": ["stage_1.features"], "outputs": ["stage_2.logits"], "logits": "stage_2.logits"},
        ],
    }
    assert staged("int8").models[1].graph.inputs[0].dtype == onnx_ir.DataType.UINT8


@pytest.mark.parametrize("kind", KINDS)
def test_joining_the_stages_gives_the_file_again(kind):
    whole = simplified(kind).model
    before = proto_bytes(whole)
    again = join(staged(kind))
    assert proto_bytes(whole) == before
    assert sorted_constants(again) == sorted_constants(whole)


def sorted_constants(model):
    """A file's content with its constants in the order of their names."""
    proto = onnx_ir.to_proto(model)

    def sort(graph):
        constants = sorted(graph.initializer, key=lambda tensor: tensor.name)
        infos = sorted(graph.value_info, key=lambda info: info.name)
        del graph.initializer[:], graph.value_info[:]
        graph.initializer.extend(constants)
        graph.value_info.extend(infos)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    sort(attribute.g)

    sort(proto.graph)
    return proto.SerializeToString(deterministic=True)


def test_writing_twice_gives_the_same_files(tmp_path):
    for folder in ("a", "b"):
        write(split(exported("one exit"), (IMAGE,)), tmp_path / folder)
    files = [path.relative_to(tmp_path / "a") for path in staged_files(tmp_path / "a")]
    assert [str(path) for path in files] == ["cascade.json", "stage-1.onnx", "stage-2.onnx", "run_cascade.py"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_folder_runs_where_nothing_of_kdc_is_installed(tmp_path):
    _, x = sample("one exit")
    folder = write(staged("one exit"), tmp_path / "built").parent
    shutil.copytree(folder, tmp_path / "elsewhere")
    np.savez(tmp_path / "inputs.npz", image=x.numpy())
    # A finder that knows no kdc, as on a user's machine: -I keeps the folder, the environment and the user's site out.
    command = (
        "import sys, runpy\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('kdc', 'passes', 'targets', 'torch', 'onnx', 'onnx_ir'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program = tmp_path / "elsewhere" / "run_cascade.py"
    arguments = [str(program), str(tmp_path / "inputs.npz"), "--out", str(tmp_path / "out.npz"), "--batch", "64"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", command, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    logits, exits = found_one_by_one("one exit")
    counts = np.bincount(exits, minlength=2)
    assert done.stdout == f"200 samples; exit 0: {counts[0]}, exit 1: {counts[1]}\n"
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["exit"], exits)
        np.testing.assert_allclose(out["logits"], logits, rtol=1e-4, atol=1e-4)


def test_a_stage_that_was_changed_is_refused_by_its_name(tmp_path):
    path = write(staged("one exit"), tmp_path)
    stage = tmp_path / "stage-2.onnx"
    stage.write_bytes(stage.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"stage-2\.onnx: was changed"):
        run_cascade.load(tmp_path)
    runtime, file = runtime_of(DEVICE), DeviceFile(path, "onnxruntime")
    for ask in (runtime.files, lambda file: runtime.load(file, DEVICE)):
        with pytest.raises(TargetError, match=r"stage-2\.onnx: was changed"):
            ask(file)


def test_one_file_where_the_target_runs_one_sample_at_a_time():
    decision, notes = decide(simplified("one exit"), DEVICE)
    assert decision == Target(device=DEVICE)
    assert notes == []
    file = Build().apply(simplified("one exit"), decision)
    assert file.model.path.name == "model.onnx"
    assert file.inputs == simplified("one exit").inputs


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (
            with_batch(8),
            "If decides for a whole batch, and this target runs batches of 8: the staged form decides for each sample",
        ),
        (
            DEVICE.model_copy(update={"unsupported_operators": ("If",)}),
            "target cpu-ort has no operator If: the staged form leaves the choice to the host",
        ),
    ],
)
def test_stages_where_the_target_cannot_use_if_and_the_reason_is_told(device, reason):
    artifact, x = sample("two exits")
    decision, notes = decide(simplified("two exits"), device)
    assert (decision.form, decision.reason, notes) == ("staged", reason, [reason])
    file = Build().apply(simplified("two exits"), decision)
    assert file.inputs == (IMAGE,)
    assert file.outputs == (LOGITS, TensorSpec(name="exit", shape=("batch",), dtype="int64"))
    runtime = runtime_of(device)
    names = ["cascade.json", "stage-1.onnx", "stage-2.onnx", "stage-3.onnx"]
    assert [path.name for path in runtime.files(file.model)] == names
    engine = runtime.load(file.model, device)
    assert engine.inputs == (Port("image", ("batch", 3, 12, 12), "float32"),)
    assert engine.outputs == (Port("logits", ("batch", 5), "float32"), Port("exit", ("batch",), "int64"))
    with torch.no_grad():
        expected = artifact.model.route(x)
    same("two exits", engine.run([x.numpy()]), expected)
    with pytest.raises(TargetError, match="takes 1 arrays of one length"):
        engine.run([x.numpy(), x.numpy()])


def test_a_decision_from_before_there_were_forms_still_loads():
    assert Target.model_validate({"device": DEVICE.model_dump()}) == Target(device=DEVICE)


def test_an_if_of_the_teachers_own_is_no_cascade():
    def branch(name):
        face = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        return helper.make_graph([helper.make_node("Neg", ["x"], [name])], name, [], face)

    choice = helper.make_node("If", ["c"], ["y"], "i", then_branch=branch("a"), else_branch=branch("b"))
    faces = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    faces.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph([choice], "g", faces, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])
    assert not is_branched(onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])))
    assert is_branched(exported("one exit"))
    assert not is_branched(staged("one exit").models[0])


def test_a_batch_that_a_pass_fixed_is_found():
    model = exported("one exit").clone()
    shape = next(value for value in model.graph.initializers.values() if value.const_value.shape == (2,))
    fixed = np.array([1, shape.const_value.numpy()[1]])
    shape.const_value = onnx_ir.tensor(fixed, name=shape.name)
    # What reads the constant knows the batch, and with it the confidence.
    with pytest.raises(LawError, match="is fixed at 1"):
        split(model, (IMAGE,))


def test_the_batch_is_free_again():
    assert with_free_batch(simplified("one exit").inputs) == (IMAGE,)


def test_a_target_with_files_of_its_own_is_named_in_the_plan(tmp_path):
    def build(path: Path) -> Path:
        return path.rename(path.with_suffix(".own"))

    path = write(staged("one exit"), tmp_path, build)
    plan = json.loads(path.read_text())
    assert [stage["file"] for stage in plan["stages"]] == ["stage-1.own", "stage-2.own"]
    assert run_cascade.read(path) == plan


def test_constants_outside_a_branch_are_copied_into_its_stage(tmp_path):
    artifact, x = sample("two exits")
    model = simplified("two exits").model.clone()
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    common.DeduplicateInitializersPass()(model)
    assert all(not graph.initializers for graph in model.graph.subgraphs())
    cascade = run_cascade.load(write(split(model, (IMAGE,)), tmp_path).parent)
    with torch.no_grad():
        same("two exits", cascade.run([x.numpy()]), artifact.model.route(x))


def test_a_stage_may_read_the_inputs_and_any_stage_before(tmp_path):
    model = simplified("two exits").model.clone()
    values = {
        value.name: value for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs
    }
    features, last = values["stage_2.features"], values["stage_3.logits"].producer().graph
    readers = [node for node in last if features in node.inputs]
    for read in (values["stage_1.features"], model.graph.inputs[0]):
        axes = onnx_ir.node("Constant", [], {"value": onnx_ir.tensor(np.array([1, 2, 3]))}, name=f"axes_{read.name}")
        mean = onnx_ir.node("ReduceMean", [read, *axes.outputs], name=f"mean_{read.name}")
        total = onnx_ir.node("Add", [features, *mean.outputs], name=f"add_{read.name}")
        for node in (axes, mean, total):
            node.outputs[0].name = node.name
        last.insert_before(readers[0], [axes, mean, total])
        features = total.outputs[0]
    for node in readers:
        node.replace_input_with(list(node.inputs).index(values["stage_2.features"]), features)
    cut = split(model, (IMAGE,))
    assert cut.plan["stages"][2]["inputs"] == ["stage_1.features", "stage_2.features", "image"]
    _, x = sample("two exits")
    logits, exits = run_cascade.load(write(cut, tmp_path).parent).run([x.numpy()])
    for form in (model, join(cut)):
        wanted, places = one_by_one(form, x)
        np.testing.assert_array_equal(exits, places)
        np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(logits - found_one_by_one("two exits")[0])[exits == 2].max() > 1e-3
