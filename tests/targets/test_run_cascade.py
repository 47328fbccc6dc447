"""The host's loop, on stages that are plain functions of numpy."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets import run_cascade
from targets.cascade import is_cascade, load_cascade, stage_files
from targets.run_cascade import Cascade, load, read
from targets.runtime import Port

PLAN = {
    "inputs": ["x", "key"],
    "outputs": ["logits", "exit"],
    "stages": [
        {
            "inputs": ["x"],
            "outputs": ["h", "l1", "c1"],
            "logits": "l1",
            "confidence": "c1",
            "threshold": float(np.float32(0.3)),
        },
        {"inputs": ["h"], "outputs": ["l2", "c2"], "logits": "l2", "confidence": "c2", "threshold": 0.5},
        {"inputs": ["h", "key"], "outputs": ["l3"], "logits": "l3"},
    ],
}


class Stages:
    """Stage 1 is as sure as x says, stage 2 as its second column says; each tells by its logits who answered."""

    def __init__(self):
        self.seen = []

    def cascade(self, plan=PLAN):
        return Cascade([self.first, self.second, self.third], plan)

    def first(self, inputs):
        (x,) = inputs
        self.seen.append(len(x))
        return x * 10, np.stack([x[:, 2], np.full(len(x), 1.0, np.float32)], 1), x[:, 0]

    def second(self, inputs):
        (h,) = inputs
        self.seen.append(len(h))
        return np.stack([h[:, 2] / 10, np.full(len(h), 2.0, np.float32)], 1), h[:, 1] / 10

    def third(self, inputs):
        h, key = inputs
        self.seen.append(len(h))
        np.testing.assert_array_equal(h[:, 2] / 10, key[:, 0])  # both kept in step
        return (np.stack([h[:, 2] / 10, np.full(len(h), 3.0, np.float32)], 1),)


def samples(n, seed=0):
    x = np.random.default_rng(seed).random((n, 3)).astype(np.float32)
    x[:, 2] = np.arange(n)
    return x


def expected(x):
    return np.where(x[:, 0] >= np.float32(0.3), 0, np.where(x[:, 1] * 10 / 10 >= np.float32(0.5), 1, 2))


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_every_sample_gets_the_answer_of_the_first_stage_that_is_sure(n):
    x, stages = samples(n), Stages()
    logits, exits = stages.cascade().run([x, x[:, 2:]])
    np.testing.assert_array_equal(exits, expected(x))
    np.testing.assert_array_equal(logits[:, 0], np.arange(n))
    np.testing.assert_array_equal(logits[:, 1], exits + 1)
    assert exits.dtype == np.int64
    assert stages.seen == [count for count in (n, (exits > 0).sum(), (exits > 1).sum()) if count]


def test_a_stage_that_nobody_needs_does_not_run():
    x, stages = samples(5), Stages()
    x[:, 0] = 1.0
    stages.cascade().run([x, x[:, 2:]])
    assert stages.seen == [5]


def test_a_confidence_at_the_threshold_is_enough_in_float32():
    x = samples(2)
    x[:, 0] = np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(0))
    x[:, 1] = 0.9
    assert Stages().cascade().run([x, x[:, 2:]])[1].tolist() == [0, 1]


def test_a_confidence_that_is_no_number_goes_on():
    x = samples(1)
    x[:, :2] = np.nan
    assert Stages().cascade().run([x, x[:, 2:]])[1].tolist() == [2]


@pytest.mark.parametrize("inputs", [[samples(3)], [samples(3), samples(2)[:, 2:]]])
def test_inputs_that_do_not_fit_are_refused(inputs):
    with pytest.raises(ValueError, match="takes 2 arrays of one length, for x, key; got"):
        Stages().cascade().run(inputs)


@pytest.fixture
def folder(tmp_path):
    """A cascade of x [batch, 2]: stage 1 is as sure as the largest x, and answers x; stage 2 answers -x."""

    def face(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def stage(number, nodes, inputs, outputs):
        graph = helper.make_graph(nodes, "stage", inputs, outputs)
        path = tmp_path / f"stage-{number}.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    sure = [helper.make_node("ReduceMax", ["x"], ["c"], axes=[1], keepdims=0), helper.make_node("Abs", ["x"], ["l"])]
    first = stage(1, sure, [face("x", "batch", 2)], [face("c", "batch"), face("l", "batch", 2)])
    negated = helper.make_node("Neg", ["x"], ["m"])
    last = stage(2, [negated], [face("x", "batch", 2)], [face("m", "batch", 2)])
    first |= {"inputs": ["x"], "outputs": ["l", "c"], "logits": "l", "confidence": "c", "threshold": 0.5}
    last |= {"inputs": ["x"], "outputs": ["m"], "logits": "m"}
    plan = {"schema_version": 1, "inputs": ["x"], "outputs": ["logits", "exit"], "stages": [first, last]}
    (tmp_path / "cascade.json").write_text(json.dumps(plan))
    return tmp_path


X = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.5]], np.float32)


def test_a_folder_is_loaded_and_runs(folder):
    logits, exits = load(folder).run([X])
    assert exits.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(logits, X * [[1], [-1], [1]])


def test_the_engine_is_the_same_loop_with_ports_of_its_own(folder, device):
    from targets.onnxruntime import RUNTIME

    file = DeviceFile(folder / "cascade.json", "onnxruntime")
    assert is_cascade(file.path)
    assert not is_cascade(folder / "stage-1.onnx")
    assert [path.name for path in RUNTIME.files(file)] == ["cascade.json", "stage-1.onnx", "stage-2.onnx"]
    assert stage_files(file.path) == RUNTIME.files(file)
    engine = RUNTIME.load(file, device)
    assert engine.inputs == (Port("x", ("batch", 2), "float32"),)
    assert engine.outputs == (Port("logits", ("batch", 2), "float32"), Port("exit", ("batch",), "int64"))
    logits, exits = engine.run([X])
    assert exits.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(logits, X * [[1], [-1], [1]])
    with pytest.raises(TargetError, match="takes 1 arrays"):
        engine.run([])


def test_a_missing_plan_or_stage_and_a_strange_version_are_named(folder):
    path = folder / "cascade.json"
    with pytest.raises(TargetError, match="there is no such file"):
        stage_files(folder / "none" / "cascade.json")
    plan = path.read_text()
    path.write_text(plan.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ValueError, match="is of version 2, this program reads 1"):
        read(path)
    for text in ("no json", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(TargetError, match=r"cascade\.json: is not a cascade's plan"):
            load_cascade(path, lambda file: None, "onnxruntime")
    path.write_text(plan)
    (folder / "stage-1.onnx").unlink()
    with pytest.raises(TargetError, match=r"stage-1\.onnx: there is no such file, and cascade\.json names it"):
        stage_files(path)


def run(folder, *arguments):
    program = folder / "run_cascade.py"
    program.write_bytes(Path(run_cascade.__file__).read_bytes())
    command = [sys.executable, "-I", str(program), *arguments]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


def test_the_command_line_prints_one_line_and_writes_the_answers(folder):
    for name in ("x", "0"):
        np.savez(folder / "in.npz", **{name: X})
        done = run(folder, "in.npz", "--out", "out.npz", "--batch", "2")
        assert (done.stdout, done.stderr, done.returncode) == ("3 samples; exit 0: 2, exit 1: 1\n", "", 0)
        with np.load(folder / "out.npz") as out:
            assert out["exit"].tolist() == [0, 1, 0]
            np.testing.assert_array_equal(out["logits"], X * [[1], [-1], [1]])


def test_the_command_line_names_what_is_wrong(folder):
    np.savez(folder / "in.npz", y=X)
    done = run(folder, "in.npz")
    assert done.returncode == 2
    assert done.stderr.endswith("in.npz: has no array for x; it has y\n")
    np.savez(folder / "in.npz", x=X[:0])
    assert "has no samples" in run(folder, "in.npz").stderr
    (folder / "stage-2.onnx").write_bytes(b"")
    assert "stage-2.onnx: was changed since cascade.json was written" in run(folder, "in.npz").stderr
