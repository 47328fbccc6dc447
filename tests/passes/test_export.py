import os
import subprocess
import sys
from pathlib import Path

import onnx_ir
import pytest
import torch
from lowering_zoo import ZOO, images
from onnx import TensorProto, helper
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.errors import LawError, ModelError
from kdc.core.spec import TensorSpec
from kdc.driver.lint import operators
from passes.export import Export, Interface
from passes.export.lower import check, lower

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGE = TensorSpec(name="image", shape=("batch", 3, 16, 16), dtype="float32")
LOGITS = TensorSpec(name="logits", shape=("batch", 10), dtype="float32")


def proto_bytes(model):
    return onnx_ir.to_proto(model).SerializeToString()


@pytest.mark.parametrize("name", ZOO)
def test_the_exported_file_agrees_with_torch_at_any_batch_size(name, lowered, in_runtime):
    model = lowered.float(name).model
    for batch in (1, 5):
        with torch.no_grad():
            expected = model(images(batch))
        found = in_runtime(lowered.exported(name), images(batch))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ZOO)
def test_names_and_sizes_of_the_file_are_those_of_the_artifact(name, lowered):
    graph = lowered.exported(name).graph
    assert [(v.name, tuple(str(s) for s in v.shape)) for v in (*graph.inputs, *graph.outputs)] == [
        ("image", ("batch", "3", "16", "16")),
        ("logits", ("batch", "10")),
    ]


def test_another_process_in_another_folder_exports_the_same_bytes(lowered, tmp_path):
    script = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(ROOT)!r}]\n"
        "import torch; torch.set_num_threads(1)\n"
        "import onnx_ir; from conftest import Lowered\n"
        "onnx_ir.save(Lowered.exported('residual'), 'float.onnx')\n"
        "onnx_ir.save(Lowered.integers('residual'), 'int8.onnx')\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, env=environment)
    here = tmp_path / "here.onnx"
    for name, model in (("float", lowered.exported("residual")), ("int8", lowered.integers("residual"))):
        onnx_ir.save(model, here)
        assert here.read_bytes() == (tmp_path / f"{name}.onnx").read_bytes()


def test_exporting_twice_in_one_process_gives_the_same_bytes(lowered):
    assert proto_bytes(lower(lowered.float("plain"), 21)) == proto_bytes(lowered.exported("plain"))


def test_the_file_names_no_path_no_class_and_no_line_of_code(lowered):
    content = proto_bytes(lowered.exported("attention")) + proto_bytes(lowered.integers("attention"))
    for word in (b"torch", b".py", b"Attention", b"pkg.", b"_zoo"):
        assert word not in content


def test_export_leaves_the_artifact_as_it_was(lowered):
    for artifact in (lowered.float("separable"), lowered.quantized("separable")):
        before = artifact.digest()
        lower(artifact, 20)
        assert artifact.digest() == before


@pytest.mark.parametrize("opset", [18, 23])
def test_the_file_has_the_opset_that_was_asked_for(opset, lowered, in_runtime):
    model = lower(lowered.quantized("separable"), opset)
    assert model.opset_imports == {"": opset}
    torch.testing.assert_close(
        in_runtime(model, images(3)), in_runtime(lowered.integers("separable"), images(3)), rtol=0, atol=1e-6
    )


def test_pooling_to_one_value_is_one_operator_and_other_pooling_still_exports(lowered, in_runtime):
    class Pooled(nn.Module):
        def forward(self, x):
            return nn.functional.adaptive_avg_pool2d(x, 4)

    assert "GlobalAveragePool" in operators(lowered.exported("residual"))
    out = TensorSpec(name="y", shape=("batch", 3, 4, 4), dtype="float32")
    model = lower(Artifact(Pooled().eval(), (IMAGE,), (out,)), 21)
    torch.testing.assert_close(in_runtime(model, images(2)), nn.functional.avg_pool2d(images(2), 4))


def test_no_operator_of_training_is_left(lowered):
    left = {name.split("::")[-1] for name in operators(lowered.exported("plain"))}
    assert not left & {"Dropout", "BatchNormalization"}


def test_export_says_which_model_cannot_be_traced():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="cannot be traced"):
        lower(Artifact(Branching(), (IMAGE,), (IMAGE,)), 21)


def of_node(node):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return onnx_ir.from_proto(
        helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=opsets, ir_version=10)
    )


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (helper.make_node("Dropout", ["x"], ["y"], "d"), "training"),
        (helper.make_node("Quantizer", ["x"], ["y"], "q", domain="own"), "own::Quantizer"),
        (helper.make_node("Relu", ["z"], ["y"], "r"), "no valid ONNX"),
    ],
)
def test_the_check_refuses_what_no_runtime_should_see(node, word):
    with pytest.raises(LawError, match=word):
        check(of_node(node))


def test_operators_are_found_inside_subgraphs():
    then = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["a"])],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["b"])],
        "else",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2])],
    )
    branch = helper.make_node("If", ["c"], ["y"], "i", then_branch=then, else_branch=otherwise)
    assert operators(of_node(branch)) == {"If": 1, "Neg": 1, "Abs": 1}


def test_the_pass_names_inputs_and_outputs_as_its_decision_says(lowered, quantization_context):
    artifact = lowered.float("perceptron")
    decision = Export().decide(artifact, quantization_context(artifact.model))
    assert decision == Interface(opset=21, inputs=("image",), outputs=("logits",))
    renamed = Export().apply(artifact, decision.model_copy(update={"outputs": ("scores",)}))
    assert (
        [value.name for value in renamed.model.graph.outputs] == [spec.name for spec in renamed.outputs] == ["scores"]
    )
    assert Export(opset=19).decide(artifact, quantization_context(artifact.model)).opset == 19
