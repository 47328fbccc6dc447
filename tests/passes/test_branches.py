"""A cascade as one file whose `If` really skips."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.cascade import Cascade, confidence
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.numerics.affine import Affine
from passes.export import Export, Interface
from passes.export.branches import branched, join
from passes.export.lower import canonical, check
from passes.export.staged import split
from passes.quantize.quantizers import QuantizedLayer, Quantizer
from passes.simplify import Rounds, Simplify

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPSET = 21
IMAGE = TensorSpec(name="image", shape=("batch", 3, 12, 12), dtype="float32")
LOGITS = TensorSpec(name="logits", shape=("batch", 5), dtype="float32")
KINDS = ("one exit", "two exits", "int8")


def conv(channels_in, channels, stride):
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def head(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def quantizer():
    return Quantizer(Affine(0.02, 0, 0, 255))


def integer_conv(channels_in, channels, stride, source):
    layer = nn.Conv2d(channels_in, channels, 3, stride, 1)
    held = QuantizedLayer(
        torch.ops.aten.conv2d.default,
        ([stride, stride], [1, 1], [1, 1], 1),
        layer.weight,
        layer.bias,
        per_channel=True,
        bits=8,
        clip_by_mse=False,
        source=source,
    )
    return nn.Sequential(held, nn.ReLU(), quantizer())


def integer_head(channels):
    layer, source = nn.Linear(channels, 5), quantizer()
    held = QuantizedLayer(
        torch.ops.aten.linear.default,
        (),
        layer.weight,
        layer.bias,
        per_channel=True,
        bits=8,
        clip_by_mse=False,
        source=source,
    )
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), source, nn.Flatten(), held)


def parts(kind):
    if kind == "int8":
        first = Quantizer(Affine(0.03, 128, 0, 255))
        begin = integer_conv(3, 16, 2, first)
        middle = integer_conv(16, 16, 1, begin[-1])
        end = integer_conv(16, 16, 2, middle[-1])
        return [nn.Sequential(first, begin, middle), nn.Sequential(end, integer_head(16))], [integer_head(16)]
    if kind == "one exit":
        return [nn.Sequential(conv(3, 8, 2), conv(8, 8, 1)), nn.Sequential(conv(8, 16, 2), head(16))], [head(8)]
    stages = [conv(3, 8, 2), nn.Sequential(conv(8, 8, 1), conv(8, 12, 2)), nn.Sequential(conv(12, 12, 1), head(12))]
    return stages, [head(8), head(12)]


def images(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, 12, mode="bilinear")


@functools.cache
def sample(kind):
    """A random cascade and 200 inputs; each threshold lies in the widest gap of the middle half of what is left there."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        stages, exits = parts(kind)
        cascade = Cascade(stages, exits, [0.0] * len(exits))
        for module in cascade.modules():
            if isinstance(module, nn.Linear) or (isinstance(module, QuantizedLayer) and module.weight.dim() == 2):
                module.weight.mul_(6.0)  # so that some inputs are surer than others
        cascade.train()
        for seed in range(3):
            cascade.answers(images(64, seed))
    cascade.eval()
    x = images(200, seed=9)
    with torch.no_grad():
        waiting = torch.ones(200, dtype=torch.bool)
        thresholds = []
        for logits in cascade.answers(x)[:-1]:
            found = confidence(logits)
            ordered = found[waiting].sort().values
            low, high = len(ordered) // 4, 3 * len(ordered) // 4
            gaps = ordered[low + 1 : high] - ordered[low : high - 1]
            thresholds.append(float(ordered[low + int(gaps.argmax()) :][:2].mean()))
            waiting = waiting & (found < thresholds[-1])
    return artifact_of(cascade, thresholds), x


def artifact_of(cascade, thresholds):
    return Artifact(Cascade(cascade.stages, cascade.exits, thresholds).eval(), (IMAGE,), (LOGITS,))


@functools.cache
def exported(kind):
    return branched(sample(kind)[0], OPSET)


@functools.cache
def simplified(kind):
    ends = [spec.model_copy(update={"shape": (1, *spec.shape[1:])}) for spec in (IMAGE, LOGITS)]
    taken = TensorSpec(name="exit", shape=(1,), dtype="int64")
    artifact = Artifact(exported(kind), (ends[0],), (ends[1], taken))
    return Simplify().apply(artifact, Rounds(rounds=3))


def with_threshold(threshold):
    """The file of one exit with another threshold."""
    staged = split(exported("one exit"), (IMAGE,))
    first, last = staged.plan["stages"]
    return join(replace(staged, plan={**staged.plan, "stages": [{**first, "threshold": threshold}, last]}))


def options():
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    return settings


def session(model, settings=None):
    content = onnx_ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, settings or options(), providers=["CPUExecutionProvider"])


def one_by_one(model, x):
    run = session(model)
    found = [run.run(["logits", "exit"], {"image": image[None].numpy()}) for image in x]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def proto_bytes(model):
    return onnx_ir.to_proto(model).SerializeToString(deterministic=True)


def same(kind, found, expected):
    (logits, exits), (wanted, places) = found, expected
    if kind == "int8":  # ties round otherwise in integer kernels
        assert (exits == places.numpy()).mean() >= 0.99
        together = exits == places.numpy()
        assert np.abs(logits - wanted.numpy())[together].max() < 0.05 * float(wanted.abs().max())
    else:
        np.testing.assert_array_equal(exits, places.numpy())
        np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [exported, lambda kind: simplified(kind).model], ids=["exported", "simplified"])
def test_the_file_decides_as_torch_does_and_every_exit_is_used(kind, form):
    artifact, x = sample(kind)
    with torch.no_grad():
        expected = artifact.model.route(x)
    found = one_by_one(form(kind), x)
    assert found[1].dtype == np.int64
    assert min(np.bincount(found[1], minlength=len(artifact.model.stages))) > 20
    same(kind, found, expected)


@pytest.mark.parametrize(("threshold", "place"), [(0.0, 0), (2.0, 1)])
def test_a_threshold_of_0_sends_all_out_and_one_above_1_none(threshold, place):
    artifact, x = sample("one exit")
    logits, exits = one_by_one(with_threshold(threshold), x[:20])
    assert exits.tolist() == [place] * 20
    with torch.no_grad():
        np.testing.assert_allclose(logits, artifact.model.answers(x[:20])[place].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_simplify_twice_is_once_and_it_keeps_weights_in_their_branches(kind):
    once = simplified(kind)
    assert proto_bytes(Simplify().apply(once, Rounds(rounds=3)).model) == proto_bytes(once.model)
    inner = [graph for graph in once.model.graphs() if graph is not once.model.graph]
    for graph in inner:
        sizes = [value.const_value.size for value in graph.initializers.values()]
        assert sizes == [] or max(sizes) > 100


@pytest.mark.parametrize(("threshold", "stages"), [(0.0, {"stage_1"}), (2.0, {"stage_1", "stage_2"})])
def test_the_branch_that_is_not_taken_does_not_run(threshold, stages, tmp_path):
    settings = options()
    settings.enable_profiling, settings.profile_file_prefix = True, str(tmp_path / "profile")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps the nodes' names
    run = session(with_threshold(threshold), settings)
    run.run(None, {"image": images(1).numpy()})
    events = json.loads(Path(run.end_profiling()).read_text())
    ran = {event["name"].split(".")[0] for event in events if event.get("args", {}).get("op_name") == "Conv"}
    assert ran == stages


@pytest.mark.parametrize("form", [exported, lambda kind: simplified(kind).model], ids=["exported", "simplified"])
def test_convolutions_inside_an_int8_branch_run_on_integers(form, tmp_path):
    settings = options()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session(form("int8"), settings)
    optimized = onnx_ir.load(tmp_path / "optimized.onnx")
    branches = [[node.op_type for node in graph] for graph in optimized.graphs() if graph is not optimized.graph]
    inside = [name for branch in branches for name in branch]
    assert inside.count("QLinearConv") == 1
    assert not {"Conv", "Gemm", "QuantizeLinear", "DequantizeLinear"} & set(inside)
    outside = [node.op_type for node in optimized.graph]
    assert outside.count("QLinearConv") == 2
    assert "Conv" not in outside


def test_no_transposition_is_left_where_an_int8_cascade_is_cut(tmp_path):
    settings = options()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session(simplified("int8").model, settings)
    optimized = onnx_ir.load(tmp_path / "optimized.onnx")
    order = [node.op_type for node in optimized.graph]
    assert order[order.index("QLinearGlobalAveragePool") - 1] == "QLinearConv"
    inside = optimized.graph.outputs[0].producer().attributes["else_branch"].as_graph()
    assert inside[0].op_type == "QLinearConv"


def test_the_boundary_of_an_int8_cascade_is_crossed_by_integers():
    choice = exported("int8").graph.outputs[0].producer()
    inner = choice.attributes["else_branch"].as_graph()
    own = {value for node in inner for value in node.outputs} | set(inner.initializers.values())
    (crossing,) = {value for node in inner for value in node.inputs if value is not None} - own
    transpose = crossing.producer()
    assert transpose.op_type == "Transpose"
    assert transpose.inputs[0].producer().op_type == "QuantizeLinear"


def test_the_file_is_canonical_and_valid_and_its_names_stand_once():
    for kind in KINDS:
        model = exported(kind)
        check(model)
        before = proto_bytes(model)
        canonical(model)
        assert proto_bytes(model) == before
        names = [value.name for graph in model.graphs() for value in graph.initializers.values()]
        nodes = [node for graph in model.graphs() for node in graph]
        names += [value.name for node in nodes for value in node.outputs]
        assert len(names) == len(set(names))
        assert len(nodes) == len({node.name for node in nodes})
        assert b"torch" not in before
        assert str(ROOT).encode() not in before


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    script = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]\n"
        "import torch; torch.set_num_threads(1)\n"
        "import onnx_ir; from test_branches import exported, simplified\n"
        "onnx_ir.save(exported('int8'), 'int8.onnx')\n"
        "onnx_ir.save(simplified('two exits').model, 'float.onnx')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, env=environment)
    here = tmp_path / "here.onnx"
    for name, model in (("int8", exported("int8")), ("float", simplified("two exits").model)):
        onnx_ir.save(model, here)
        assert here.read_bytes() == (tmp_path / f"{name}.onnx").read_bytes()


def test_export_leaves_the_cascade_and_its_mode_as_they_were():
    artifact, _ = sample("two exits")
    artifact.model.train()
    try:
        before = artifact.digest()
        branched(artifact, OPSET)
        assert artifact.digest() == before
        assert all(module.training for module in artifact.model.modules())
    finally:
        artifact.model.eval()


def test_the_file_says_that_it_is_for_batch_1_and_refuses_others():
    run = session(exported("one exit"))
    assert [port.shape for port in (*run.get_inputs(), *run.get_outputs())] == [[1, 3, 12, 12], [1, 5], [1]]
    with pytest.raises(Exception, match=r"[Gg]ot invalid dimensions"):
        run.run(None, {"image": images(2).numpy()})


def test_the_pass_tells_the_exit_and_the_batch_in_its_specs():
    artifact, _ = sample("one exit")
    decision = Export().decide(artifact, SimpleNamespace(device=SimpleNamespace(opset=OPSET)))
    assert decision == Interface(opset=OPSET, inputs=("image",), outputs=("logits", "exit"))
    renamed = Export().apply(artifact, decision.model_copy(update={"outputs": ("scores", "left_at")}))
    assert renamed.inputs == (IMAGE.model_copy(update={"shape": (1, 3, 12, 12)}),)
    assert renamed.outputs == (
        TensorSpec(name="scores", shape=(1, 5), dtype="float32"),
        TensorSpec(name="left_at", shape=(1,), dtype="int64"),
    )
    assert [value.name for value in renamed.model.graph.outputs] == ["scores", "left_at"]


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 8, 2)

    def forward(self, left, right):
        return self.conv(left + right)


def test_the_first_stage_may_take_several_inputs():
    stages, exits = parts("one exit")
    cascade = Cascade([Sum(), stages[1]], exits, [0.3]).eval()
    inputs = tuple(IMAGE.model_copy(update={"name": name}) for name in ("left", "right"))
    model = branched(Artifact(cascade, inputs, (LOGITS,)), OPSET)
    left, right = images(1, 1), images(1, 2)
    logits, place = session(model).run(None, {"left": left.numpy(), "right": right.numpy()})
    with torch.no_grad():
        expected, taken = cascade.route(left, right)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert place.tolist() == taken.tolist()


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((IMAGE.model_copy(update={"shape": (1, 3, 12, 12)}),), (LOGITS,), "one free size, the batch"),
        ((IMAGE.model_copy(update={"shape": ("batch", 3, "height", 12)}),), (LOGITS,), "one free size, the batch"),
        ((IMAGE,), (LOGITS, LOGITS.model_copy(update={"name": "more"})), "has 2"),
        ((IMAGE,), (LOGITS.model_copy(update={"name": "exit"}),), "'exit' is taken"),
    ],
)
def test_specs_that_do_not_fit_a_cascade_are_refused(inputs, outputs, words):
    with pytest.raises(ModelError, match=words):
        branched(Artifact(sample("one exit")[0].model, inputs, outputs), OPSET)


def test_simplify_keeps_an_if_of_the_teachers_own():
    def branch(name, operator, constants):
        inputs = ["e", *(constant.name for constant in constants)]
        face = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])]
        return helper.make_graph([helper.make_node(operator, inputs, [name])], name, [], face, constants)

    three = numpy_helper.from_array(np.full(2, 3.0, np.float32), "three")
    branches = {"then_branch": branch("a", "Identity", []), "else_branch": branch("b", "Mul", [three])}
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("If", ["c"], ["y"], **branches)]
    faces = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    faces.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph(nodes, "g", faces, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    small = Simplify().apply(Artifact(model, (), ()), Rounds(rounds=3)).model
    x = np.array([1.0, 2.0], np.float32)
    for chosen, factor in ((True, 1.0), (False, 3.0)):
        (y,) = session(small).run(None, {"x": x, "c": np.array(chosen)})
        np.testing.assert_allclose(y, np.exp(x) * factor, rtol=1e-6)
