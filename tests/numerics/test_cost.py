"""A graph's parameters and multiply-accumulates: against formulas, and against torch's own counter."""

import numpy as np
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdc.core.errors import ModelError
from kdc.numerics.cost import count, with_shapes


def model(nodes, inputs, outputs, weights=()):
    initializers = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def value(name, *shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape) or None)


def floats(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_costs_outputs_times_filter(groups):
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=groups)
    weights = {"w": floats(16, 8 // groups, 3, 3), "b": floats(16)}
    got = count(model([node], [value("x", "n", 8, 32, 32)], [value("y", "n", 16, 16, 16)], weights))
    assert got == (16 * 8 // groups * 9 + 16, 16 * 16 * 16 * 8 // groups * 9)


def test_a_transposed_convolution_costs_inputs_times_filter():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    got = count(model([node], [value("x", 1, 6, 5, 5)], [value("y")], {"w": floats(6, 4, 2, 2)}))
    assert got == (6 * 4 * 4, 6 * 5 * 5 * 4 * 4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_matrix_product_costs_rows_times_columns_times_depth(transposed):
    rows = (7, 3) if transposed else (3, 7)
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"], transA=transposed)
    matmul = helper.make_node("MatMul", ["h", "v"], ["y"])
    weights = {"w": floats(7, 5), "v": floats(2, 5, 4)}
    assert count(model([gemm, matmul], [value("x", *rows)], [value("y", 2, 3, 4)], weights)) == (
        35 + 40,
        3 * 7 * 5 + 2 * 3 * 5 * 4,
    )


@pytest.mark.parametrize(
    ("equation", "left", "right", "macs"),
    [
        ("bik,bkj->bij", (2, 3, 5), (2, 5, 7), 2 * 3 * 5 * 7),
        ("...ik, kj -> ...ij", (4, 2, 3, 5), (5, 7), 4 * 2 * 3 * 5 * 7),
        ("...i,...i->...", (4, 1, 5), (6, 5), 4 * 6 * 5),
    ],
)
def test_an_einsum_costs_one_product_for_every_index(equation, left, right, macs):
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)
    assert count(model([node], [value("x", *left), value("w", *right)], [value("y")]))[1] == macs
    alone = helper.make_node("Einsum", ["x"], ["y"], equation="ij->ji")
    assert count(model([alone], [value("x", 3, 4)], [value("y", 4, 3)]))[1] == 0


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_a_recurrent_layer_costs_all_its_weights_at_every_step(kind, gates):
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=6, direction="bidirectional")
    weights = {"w": floats(2, gates * 6, 5), "r": floats(2, gates * 6, 6)}
    got = count(model([node], [value("x", 9, "n", 5)], [value("y")], weights))
    assert got == (2 * gates * 6 * 11, 9 * 2 * gates * 6 * 11)


def test_attention_costs_queries_by_keys_and_weights_by_values():
    wide = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    inputs = [value("q", 1, 8, 10, 4), value("k", 1, 2, 12, 4), value("v", 1, 2, 12, 6)]
    graph = helper.make_graph([wide], "g", inputs, [value("y")])
    ir = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    assert count(ir)[1] == 8 * 10 * 12 * (4 + 6)
    flat = helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=8, kv_num_heads=2)
    inputs = [value("q", 1, 10, 32), value("k", 1, 12, 8), value("v", 1, 12, 12)]
    graph = helper.make_graph([flat], "g", inputs, [value("y")])
    ir = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    assert count(ir)[1] == 8 * 10 * 12 * (4 + 6)


def test_a_quantized_model_counts_as_its_float_one():
    scale = {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8), "zw": np.array(0, np.int8)}
    bias_scale = {"sb": np.array(0.01, np.float32), "zb": np.array(0, np.int32)}
    weights = {"w": np.ones((4, 3, 3, 3), np.int8), "b": np.ones(4, np.int32), **scale, **bias_scale}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["dw"]),
        helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["db"]),
        helper.make_node("Conv", ["d", "dw", "db"], ["y"]),
    ]
    got = count(model(nodes, [value("x", "n", 3, 8, 8)], [value("y")], weights))
    plain = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    float_weights = {"w": floats(4, 3, 3, 3), "b": floats(4)}
    assert got == count(model([plain], [value("x", "n", 3, 8, 8)], [value("y")], float_weights))
    assert got == (4 * 27 + 4, 6 * 6 * 4 * 27)


def test_both_branches_of_an_if_count():
    def branch(name, width):
        weight = numpy_helper.from_array(floats(8, width), f"w{name}")
        tail = numpy_helper.from_array(floats(width, 2), f"v{name}")
        nodes = [
            helper.make_node("MatMul", ["x", f"w{name}"], [f"h{name}"]),
            helper.make_node("MatMul", [f"h{name}", f"v{name}"], [f"y{name}"]),
        ]
        return helper.make_graph(nodes, name, [], [value(f"y{name}", "n", 2)], [weight, tail])

    node = helper.make_node("If", ["go"], ["y"], then_branch=branch("a", 4), else_branch=branch("b", 16))
    inputs = [value("go", kind=TensorProto.BOOL), value("x", "n", 8)]
    inputs[0].type.tensor_type.shape.Clear()
    assert count(model([node], inputs, [value("y", "n", 2)])) == (8 * 4 + 4 * 2 + 8 * 16 + 16 * 2,) * 2


def test_shapes_and_indices_are_no_parameters():
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("Mul", ["r", "w"], ["y"])]
    weights = {"shape": np.array([-1, 6], np.int64), "w": floats(6)}
    assert count(model(nodes, [value("x", "n", 2, 3)], [value("y", "n", 6)], weights)) == (6, 0)


def test_a_shape_that_cannot_be_inferred_is_an_error_that_names_the_node():
    nodes = [
        helper.make_node("NonZero", ["x"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="late"),
    ]
    with pytest.raises(ModelError, match="'late'"):
        count(model(nodes, [value("x", 2, 3)], [value("y")], {"w": floats(3, 3)}))


@pytest.mark.parametrize(("kind", "by"), [("Div", [0, 0]), ("Gather", [0, 9])])
def test_sizes_that_no_model_can_have_make_no_noise_beside_the_error(kind, by, caplog, capfd):
    """Warnings are errors here."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node(kind, ["s", "by"], ["size"]),
        helper.make_node("Reshape", ["x", "size"], ["r"]),
        helper.make_node("MatMul", ["w", "r"], ["y"], name="late"),
    ]
    with pytest.raises(ModelError, match="'late'"):
        count(model(nodes, [value("x", 2, 3)], [value("y")], {"by": np.array(by), "w": floats(3, 3)}))
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_counting_leaves_the_model_as_it_was():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    given = model([node], [value("x", "n", 3)], [value("y", "n", 2)], {"w": floats(3, 2)})
    before = onnx_ir.to_proto(given).SerializeToString(deterministic=True)
    count(given)
    assert onnx_ir.to_proto(given).SerializeToString(deterministic=True) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter warns of its own use of pytree
def test_an_exported_network_counts_as_torch_counts_it():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    x = torch.zeros(1, 3, 16, 16)
    with FlopCounterMode(display=False) as flops:
        net(x)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        net, (torch.zeros(2, 3, 16, 16),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    parameters = sum(p.numel() for p in net.parameters())
    assert count(program.model) == (parameters, flops.get_total_flops() // 2)


class Recurrent(nn.Module):
    """[batch, 10, 12] -> [batch, 5], from the last step."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(12, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_behind_an_exported_recurrent_layer_whose_sizes_are_computed_all_is_counted(kind, gates):
    net = Recurrent(kind).eval().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        net, (torch.zeros(2, 10, 12),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    both = sum(2 * gates * 16 * (inputs + 16) for inputs in (12, 32))
    assert count(program.model)[1] == 10 * both + 32 * 5


def test_an_einsum_that_sums_nothing_is_a_scaling_and_costs_nothing():
    for equation in ("bi,bi->bi", "...i,...i->...i", "bi,j->bij"):
        right = (5,) if "j" in equation else (3, 5)
        node = helper.make_node("Einsum", ["x", "w"], ["y"], equation=equation)
        assert count(model([node], [value("x", 3, 5), value("w", *right)], [value("y")]))[1] == 0
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bi,bi")
    assert count(model([node], [value("x", 3, 5), value("w", 3, 5)], [value("y")]))[1] == 15


def test_a_product_of_weights_alone_is_none_of_a_samples():
    made = helper.make_node("MatMul", ["v", "w"], ["vw"])
    taken = helper.make_node("MatMul", ["x", "vw"], ["y"])
    weights = {"v": floats(5, 4), "w": floats(4, 6)}
    assert count(model([made, taken], [value("x", 3, 5)], [value("y", 3, 6)], weights)) == (20 + 24, 3 * 5 * 6)


def test_a_matrix_product_that_onnxruntime_fused_with_a_transpose_counts():
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1, alpha=0.5)
    graph = model([node], [value("x", 2, 3, 5), value("w", 2, 7, 5)], [value("y", 2, 3, 7)])
    assert count(graph)[1] == 2 * 3 * 7 * 5


def test_shapes_are_known_behind_a_group_normalization():
    norm = helper.make_node("GroupNormalization", ["x", "s", "b"], ["h"], num_groups=2)
    conv = helper.make_node("Conv", ["h", "w"], ["y"])
    weights = {"s": floats(4), "b": floats(4), "w": floats(6, 4, 1, 1)}
    graph = model([norm, conv], [value("x", "n", 4, 5, 5)], [value("y", "n", 6, 5, 5)], weights)
    assert count(graph)[1] == 6 * 4 * 25
    assert [node.op_type for node in with_shapes(graph).graph] == ["GroupNormalization", "Conv"]
