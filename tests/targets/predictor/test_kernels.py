"""Kernels as the runtime runs them, of graphs whose shapes are known."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from kdc.core.errors import TargetError
from kdc.numerics.cost import count
from targets.predictor import blocks
from targets.predictor.builder import Builder
from targets.predictor.kernels import read_kernels
from targets.predictor.samples import WHOLE, sample, whole


@pytest.fixture
def read(tmp_path, device):
    """The kernels of what a function builds."""

    def kernels(build, *, free=True):
        b = Builder(np.random.default_rng(0), free=free)
        onnx.save(b.model(build(b)), tmp_path / "model.onnx")
        return read_kernels(tmp_path / "model.onnx", device)

    return kernels


def test_a_linear_layer_is_a_product_by_constants_and_a_sum_with_a_row(read):
    product, total = read(lambda b: [blocks.linear(b, b.input((1, 7, 24)), 40)])
    assert product.kind == "MatMul by constants"
    assert product.sizes == {"rows": 7, "columns": 40, "inner": 24, "activation": 1}
    assert (product.macs, product.read_bytes) == (7 * 24 * 40, 7 * 24 * 4)
    assert (product.weight_bytes, product.written_bytes) == (24 * 40 * 4, 7 * 40 * 4)
    assert (total.kind, total.sizes) == ("Add of a row", {"elements": 280, "width": 40})
    # the weights, the bias, and what both kernels write
    assert product.passing_bytes == total.passing_bytes == 24 * 40 * 4 + 40 * 4 + 2 * 7 * 40 * 4


def test_a_convolution_and_its_activation_are_one_kernel(read):
    kernels = read(lambda b: [blocks.conv(b, b.input((1, 32, 10, 8)), 48, 3, 2, act="Relu")])
    convolutions = [kernel for kernel in kernels if kernel.macs]
    assert len(convolutions) == 1
    assert not [kernel for kernel in kernels if kernel.kind == "Relu"]
    assert {name: convolutions[0].sizes[name] for name in ("rows", "columns", "inputs", "outputs", "stride")} == {
        "rows": 5, "columns": 4, "inputs": 32, "outputs": 48, "stride": 2,
    }  # fmt: skip


def test_points_of_a_filter_that_lie_on_padding_are_not_counted(read):
    # on a map of one point, one of a 5x5 filter's 25 points lies on the map
    kernels = read(lambda b: [blocks.conv(b, b.input((1, 32, 1, 1)), 16, 5, act="")])
    (convolution,) = [kernel for kernel in kernels if kernel.macs]
    assert convolution.sizes["taps"] == 1
    assert convolution.macs == 32 * 16
    # on 4x4, by 3x3: each axis has 2 points with three and 2 with two, of 4
    kernels = read(lambda b: [blocks.conv(b, b.input((1, 32, 4, 4)), 16, 3, act="")])
    (convolution,) = [kernel for kernel in kernels if kernel.macs]
    assert convolution.macs == 32 * 16 * (2 * 3 + 2 * 2) ** 2


@pytest.mark.parametrize(("depthwise", "kernel", "kind"), [(True, 3, "depthwise"), (False, 1, "pointwise")])
def test_kinds_of_convolutions_are_told_apart(read, depthwise, kernel, kind):
    kernels = read(lambda b: [blocks.conv(b, b.input((1, 32, 9, 9)), 32, kernel, depthwise=depthwise)])
    assert [k.kind.rpartition(" ")[2] for k in kernels if k.macs] == [kind]


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_map_of_too_few_channels_for_a_block_is_read_by_a_kernel_of_its_own(read, kernel):
    wide, narrow = (
        next(k.kind for k in read(lambda b, c=c: [blocks.conv(b, b.input((1, c, 9, 9)), 32, kernel)]) if k.macs)
        for c in (64, 3)
    )
    assert narrow.endswith(" from NCHW")
    assert wide.endswith({1: " pointwise", 3: " full"}[kernel])


def test_attention_of_a_free_batch_has_its_shapes_from_a_run(read):
    kernels = read(lambda b: [blocks.attention(b, b.input((1, 50, 96)), 4)])
    products = [kernel for kernel in kernels if kernel.kind in {"FusedMatMul", "MatMul"}]
    assert [kernel.sizes for kernel in products] == [
        {"products": 4, "rows": 50, "columns": 50, "inner": 24},
        {"products": 4, "rows": 50, "columns": 24, "inner": 50},
    ]
    (softmax,) = [kernel for kernel in kernels if kernel.kind == "Softmax"]
    assert softmax.sizes == {"rows": 200, "width": 50}
    assert sum(kernel.macs for kernel in kernels) == 50 * 96 * 96 * 4 + 2 * 4 * 50 * 50 * 24


def test_a_transpose_that_moves_nothing_is_told_from_one_that_does(read):
    # with one head, what moves the heads' axis moves nothing; the keys are turned all the same
    many, one = (
        Counter(
            kernel.kind
            for kernel in read(lambda b, heads=heads: [blocks.attention(b, b.input((1, 50, 96)), heads)])
            if "Transpose" in kernel.kind
        )
        for heads in (4, 1)
    )
    assert one == {"Transpose of nothing": many["Transpose of rows"], "Transpose within rows": 1}
    assert many["Transpose of nothing"] == 0


def test_a_sum_and_the_norm_behind_it_are_one_kernel_as_in_exported_files(read):
    def build(b):
        return [blocks.transformer(b, b.input((1, 20, 32)), 2, 64, "Gelu", before=False)]

    kinds = [kernel.kind for kernel in read(build)]
    assert kinds.count("SkipLayerNormalization") == 2
    assert "LayerNormalization" not in kinds


def test_a_table_that_rows_are_picked_from_is_not_read_as_a_whole(read):
    kernels = read(lambda b: [blocks.embedding(b, b.input((1, 5), TensorProto.INT64), 16, words=1000)])
    (gather,) = [kernel for kernel in kernels if kernel.kind == "Gather"]
    assert (gather.read_bytes, gather.weight_bytes, gather.written_bytes) == (5 * 16 * 4, 0, 5 * 16 * 4)


def test_a_model_as_a_value_reads_as_its_file_does(tmp_path, device):
    onnx.save(sample((0, 3)), tmp_path / "model.onnx")
    from_file = read_kernels(tmp_path / "model.onnx", device)
    from_value = read_kernels(onnx_ir.load(tmp_path / "model.onnx"), device)
    assert [(k.kind, k.sizes, k.macs) for k in from_file] == [(k.kind, k.sizes, k.macs) for k in from_value]


@pytest.mark.parametrize("family", WHOLE)
def test_whole_networks_have_at_most_the_multiply_accumulates_of_the_paper_count(tmp_path, device, family):
    onnx.save(whole(family, (5, 0)), tmp_path / "model.onnx")
    _, on_paper = count(onnx_ir.load(tmp_path / "model.onnx"))
    read = sum(kernel.macs for kernel in read_kernels(tmp_path / "model.onnx", device))
    # padding takes some away, padded channels add some
    assert 0.8 * on_paper < read < 1.3 * on_paper


def test_the_taken_branch_of_an_if_is_read(tmp_path, device):
    def branch(name, operator):
        value = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [2, 300])
        return helper.make_graph([helper.make_node(operator, ["x"], [f"{name}.y"], name=name)], name, [], [value])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0, name="max"),
        helper.make_node("Greater", ["most", "limit"], ["large"], name="greater"),
        helper.make_node("If", ["large"], ["y"], then_branch=branch("then", "Sin"), else_branch=branch("else", "Cos")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 300])],
        [helper.make_tensor("limit", TensorProto.FLOAT, [], [1e9])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    kinds = [kernel.kind for kernel in read_kernels(tmp_path / "model.onnx", device)]
    assert "Cos" in kinds
    assert not {"Sin", "If"} & set(kinds)


def test_what_cannot_be_read_is_said(tmp_path, device):
    with pytest.raises(TargetError, match="there is no such file"):
        read_kernels(tmp_path / "nothing.onnx", device)
    (tmp_path / "broken.onnx").write_bytes(b"not onnx")
    with pytest.raises(TargetError, match="cannot load it"):
        read_kernels(tmp_path / "broken.onnx", device)
    with pytest.raises(TargetError, match="onnxruntime alone"):
        read_kernels(tmp_path / "broken.onnx", device.model_copy(update={"runtime": "other"}))
