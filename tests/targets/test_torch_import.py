"""ONNX graphs as torch programs: each operator against ONNX Runtime, networks whole, sizes folded, refusals."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_parity import MODELS, floats, images, lowered, quantized  # noqa: F401 (a fixture)

from kdc.core.device import QuantizationScheme
from kdc.core.errors import TargetError
from targets.device import load_device
from targets.torch_import.module import CONTROL, OPERATORS, as_module

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def positive(*shape):
    return np.abs(normal(*shape)) + np.float32(0.1)


def ints(*numbers):
    return np.array(numbers, np.int64)


def one(kind, *inputs, opset=21, fixed=(), outputs=1, **attributes):
    """A graph of one node. fixed: the places of inputs that are constants of the file; None: an input left out."""
    return kind, inputs, opset, tuple(fixed), outputs, attributes


IMAGE, WEIGHT = normal(2, 4, 9, 8), normal(6, 4, 3, 3)
TABLE = normal(7, 5)
CASES = [
    *(one(kind, normal(3, 4)) for kind in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg")),
    *(one(kind, normal(3, 4)) for kind in ("Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh")),
    *(one(kind, positive(3, 4)) for kind in ("Log", "Reciprocal", "Sqrt")),
    *(one(kind, normal(3, 4), positive(4)) for kind in ("Add", "Div", "Mul", "Sub", "Max", "Min")),
    *(one(kind, np.round(normal(3, 4)), np.round(normal(4))) for kind in ("Equal", "Greater", "Less")),
    *(one(kind, np.round(normal(3, 4)), np.round(normal(4))) for kind in ("GreaterOrEqual", "LessOrEqual")),
    *(one(kind, normal(3, 4) > 0, normal(4) > 0) for kind in ("And", "Or", "Xor")),
    one("Not", normal(3) > 0),
    one("IsNaN", np.array([1, np.nan], np.float32)),
    one("Sum", normal(3, 4), normal(4), normal(3, 1)),
    one("Div", ints(-7, 7, 8), ints(2, -2, 3)),
    one("Mod", ints(-7, 7, 8), ints(3, 3, -3)),
    one("Mod", normal(5), positive(5), fmod=1),
    one("Pow", positive(3, 4), np.float32(2), fixed=[1]),
    one("Pow", positive(3, 4), np.float32(0.5), fixed=[1]),
    one("Pow", positive(3, 4), normal(4)),
    one("Clip", normal(3, 4), np.float32(-0.5), np.float32(0.7), fixed=[1, 2]),
    one("Clip", normal(3, 4), None, np.float32(0.7), fixed=[2]),
    one("Clip", normal(3, 4), np.float32(0), fixed=[1]),
    one("Clip", normal(3, 4), np.float32(-0.5), np.float32(0.7)),
    one("HardSigmoid", 4 * normal(9), alpha=1 / 6, beta=0.5),
    one("HardSigmoid", 4 * normal(9)),
    one("LeakyRelu", normal(9), alpha=0.2),
    one("Elu", normal(9), alpha=0.7),
    one("Celu", normal(9), alpha=0.7),
    one("PRelu", IMAGE, normal(4, 1, 1), fixed=[1]),
    one("Gelu", normal(9)),
    one("Gelu", normal(9), approximate="tanh"),
    one("Softmax", normal(3, 4, 5), axis=1),
    one("LogSoftmax", normal(3, 4)),
    one("Cast", normal(3, 4), to=TensorProto.INT64),
    one("Cast", ints(0, 2), to=TensorProto.BOOL),
    one("Where", normal(3, 4) > 0, normal(4), normal(3, 1)),
    one("MatMul", normal(2, 3, 4), normal(2, 4, 5)),
    one("MatMul", normal(2, 3, 4, 5), normal(2, 3, 5, 2)),
    one("MatMul", normal(2, 1, 4, 5), normal(3, 5, 2)),
    one("MatMul", normal(3, 4), normal(4, 2)),
    one("MatMul", normal(2, 3, 4), normal(4, 5), fixed=[1]),
    one("Gemm", normal(3, 4), normal(5, 4), normal(5), fixed=[1, 2], transB=1),
    one("Gemm", normal(3, 4), normal(4, 5), fixed=[1]),
    one("Gemm", normal(4, 3), normal(4, 5), normal(3, 1), transA=1, alpha=0.5, beta=2.0),
    one("Einsum", normal(2, 3, 4), normal(2, 4, 5), equation="bij,bjk->bik"),
    *(one(kind, positive(2, 3, 4), ints(1), fixed=[1]) for kind in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")),
    *(one(kind, positive(2, 3, 4), ints(1, -1), fixed=[1], keepdims=0) for kind in ("ReduceProd", "ReduceL1", "ReduceL2")),
    one("ReduceLogSumExp", normal(2, 3), ints(-1), fixed=[1]),
    one("ReduceSumSquare", normal(2, 3)),
    one("ReduceMean", normal(2, 3, 4), opset=13, axes=[1, 2]),
    one("ReduceMean", normal(2, 3), noop_with_empty_axes=1),
    one("ArgMax", normal(3, 4), axis=1, keepdims=0),
    one("ArgMin", normal(3, 4)),
    one("CumSum", normal(3, 4), np.int64(1), fixed=[1]),
    one("Conv", IMAGE, WEIGHT, normal(6), fixed=[1, 2], pads=[1, 1, 1, 1], strides=[2, 1]),
    one("Conv", IMAGE, WEIGHT, fixed=[1], pads=[0, 1, 2, 0], dilations=[2, 1]),
    one("Conv", IMAGE, WEIGHT, fixed=[1], auto_pad="SAME_UPPER", strides=[2, 2]),
    one("Conv", IMAGE, WEIGHT, fixed=[1], auto_pad="SAME_LOWER", strides=[1, 2]),
    one("Conv", IMAGE, WEIGHT, fixed=[1], auto_pad="VALID"),
    one("Conv", IMAGE, normal(8, 1, 3, 3), fixed=[1], group=4),
    one("Conv", normal(2, 4, 9), normal(6, 4, 3), fixed=[1]),
    one("Conv", normal(1, 2, 5, 5, 5), normal(3, 2, 2, 2, 2), fixed=[1]),
    one("ConvTranspose", IMAGE, normal(4, 3, 3, 3), normal(3), fixed=[1, 2], strides=[2, 2], pads=[1] * 4),
    one("ConvTranspose", IMAGE, normal(4, 3, 3, 3), fixed=[1], strides=[2, 2], pads=[0, 1, 1, 0]),
    one("ConvTranspose", IMAGE, normal(4, 2, 3, 3), fixed=[1], strides=[2, 2], output_padding=[1, 1], group=2),
    one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    one("MaxPool", IMAGE, kernel_shape=[3, 2], pads=[0, 0, 1, 1], ceil_mode=1, strides=[2, 2]),
    one("MaxPool", IMAGE, kernel_shape=[2, 2], pads=[1, 1, 1, 1], dilations=[2, 2]),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1] * 4),
    one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    one("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    one("AveragePool", IMAGE, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    one("GlobalAveragePool", IMAGE),
    one("GlobalAveragePool", normal(2, 3, 5)),
    one("GlobalMaxPool", IMAGE),
    one("BatchNormalization", IMAGE, normal(4), normal(4), normal(4), positive(4), fixed=range(1, 5)),
    one("LayerNormalization", normal(2, 3, 8), normal(8), normal(8), fixed=[1, 2]),
    one("LayerNormalization", normal(2, 3, 8), normal(3, 8), fixed=[1], axis=1, epsilon=0.1),
    one("InstanceNormalization", IMAGE, normal(4), normal(4), fixed=[1, 2]),
    one("GroupNormalization", IMAGE, normal(4), normal(4), fixed=[1, 2], num_groups=2),
    one("Reshape", normal(2, 3, 4), ints(0, -1), fixed=[1]),
    one("Reshape", normal(2, 3, 4), ints(4, 6), fixed=[1]),
    one("Flatten", normal(2, 3, 4)),
    one("Flatten", normal(2, 3, 4), axis=2),
    one("Flatten", normal(2, 3, 4), axis=0),
    one("Transpose", normal(2, 3, 4), perm=[1, 0, 2]),
    one("Transpose", normal(2, 3, 4)),
    one("Squeeze", normal(2, 1, 4, 1), ints(1, -1), fixed=[1]),
    one("Squeeze", normal(2, 1, 4, 1)),
    one("Unsqueeze", normal(2, 4), ints(0, -1), fixed=[1]),
    one("Concat", normal(2, 3), normal(2, 4), axis=-1),
    one("Split", normal(2, 6), ints(1, 5), fixed=[1], axis=1, outputs=2),
    one("Split", normal(2, 5), axis=1, num_outputs=2, outputs=2),
    one("Slice", normal(4, 6), ints(1, -4), ints(9, -1), ints(0, 1), ints(2, 1), fixed=range(1, 5)),
    one("Slice", normal(4, 6), ints(-1), ints(-(2**62)), ints(1), ints(-2), fixed=range(1, 5)),
    one("Slice", normal(4, 6), ints(1), ints(3), fixed=[1, 2]),
    one("Gather", TABLE, ints(1, 6, 0), fixed=[0]),
    one("Gather", TABLE, np.array([[1, -1], [0, 2]]), axis=1, fixed=[1]),
    one("Gather", TABLE, np.int64(-2), axis=1, fixed=[1]),
    one("Gather", TABLE, np.array([[1, -1], [0, 2]]), axis=1),
    one("GatherElements", normal(3, 4), np.array([[0, -1], [2, 3], [1, 1]]), axis=1),
    one("Expand", normal(3, 1), ints(2, 1, 4), fixed=[1]),
    one("Tile", normal(2, 3), ints(2, 1), fixed=[1]),
    one("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 3), np.float32(0.5), fixed=[1, 2]),
    one("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 3), mode="reflect", fixed=[1]),
    one("Pad", IMAGE, ints(0, 0, 1, 2, 0, 0, 0, 3), mode="edge", fixed=[1]),
    one("Pad", IMAGE, ints(1, 2), None, ints(3), fixed=[1, 3]),
    one("DepthToSpace", normal(1, 8, 2, 3), blocksize=2),
    one("DepthToSpace", normal(1, 8, 2, 3), blocksize=2, mode="CRD"),
    one("SpaceToDepth", normal(1, 2, 4, 6), blocksize=2),
    one("Trilu", normal(4, 4), np.int64(1), fixed=[1]),
    one("Trilu", normal(4, 4), upper=0),
    one("TopK", normal(3, 5), ints(2), fixed=[1], outputs=2),
    one("Identity", normal(3)),
    one("Dropout", normal(3)),
    one("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32), fixed=[2]),
    one("Resize", IMAGE, None, None, ints(2, 4, 13, 5), fixed=[3]),
    one("Resize", IMAGE, None, None, ints(2, 4, 13, 5), fixed=[3], coordinate_transformation_mode="asymmetric",
        nearest_mode="floor"),
    one("Resize", IMAGE, None, None, ints(18, 24), fixed=[3], mode="linear", axes=[2, 3]),
    one("Resize", IMAGE, None, None, ints(2, 4, 13, 5), fixed=[3], mode="linear",
        coordinate_transformation_mode="align_corners"),
    one("Resize", IMAGE, None, np.array([1, 1, 2, 2], np.float32), fixed=[2], mode="cubic"),
]  # fmt: skip


def saved(case, path):
    kind, inputs, opset, fixed, outputs, attributes = case
    names = ["" if array is None else f"in.{place}" for place, array in enumerate(inputs)]
    given = {name: np.asarray(array) for name, array in zip(names, inputs, strict=True) if name}
    weights = {name: given.pop(name) for place, name in enumerate(names) if place in fixed and name}
    results = [f"out.{place}" for place in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(kind, names, results, name="node", **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return given


def runtime_answers(path, given):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, given)


def torch_answers(path, given, batch=None):
    """Of the exported program, not of the module: what converters get."""
    program = as_module(path, batch).program()
    with torch.no_grad():
        return [found.numpy() for found in program.module()(*map(torch.from_numpy, given.values()))]


def assert_same(found, expected, tolerance=1e-5):
    assert len(found) == len(expected)
    for one_found, one_expected in zip(found, expected, strict=True):
        assert one_found.shape == one_expected.shape
        assert one_found.dtype == one_expected.dtype
        if one_expected.dtype.kind == "f":
            scale = np.sqrt(np.mean(np.square(one_expected, dtype=np.float64)))
            assert np.abs(one_found - one_expected).max() <= tolerance * scale
        else:
            np.testing.assert_array_equal(one_found, one_expected)


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{place}" for place, case in enumerate(CASES)])
def test_an_operator_computes_what_onnx_runtime_computes(case, tmp_path):
    path = tmp_path / "one.onnx"
    given = saved(case, path)
    assert_same(torch_answers(path, given), runtime_answers(path, given))


# Shape, Size, ConstantOfShape and Range give sizes: they are tested where those are computed; Linear is kdc's own name.
ELSEWHERE = {"ConstantOfShape", "DequantizeLinear", "Linear", "QuantizeLinear", "Range"}


def test_every_operator_of_the_table_has_a_test():
    assert {case[0] for case in CASES} == set(OPERATORS) - ELSEWHERE


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16"])
def test_integers_are_those_of_onnx_runtime_but_for_ties(kind, tmp_path):
    ends = np.iinfo(kind)
    x = np.concatenate([3 * normal(200), np.float32([1e9, -1e9])])
    scale, zero_point = np.float32(0.05), np.array((ends.min + ends.max) // 2 + 3, kind)
    for place, case in enumerate([
        one("QuantizeLinear", x, scale, zero_point, fixed=[1, 2]),
        one("DequantizeLinear", RANDOM.integers(ends.min, ends.max, 50).astype(kind), scale, zero_point, fixed=[1, 2]),
    ]):  # fmt: skip
        path = tmp_path / f"{place}.onnx"
        given = saved(case, path)
        (found,), (expected,) = torch_answers(path, given), runtime_answers(path, given)
        assert found.dtype == expected.dtype
        off = np.abs(found.astype(np.float64) - expected)
        assert off.max() <= (1 if place == 0 else 1e-6 * np.abs(expected).max())
        assert (off == 0).mean() > 0.98 or place == 1


def test_scales_of_channels_stand_on_their_axis(tmp_path):
    weight = RANDOM.integers(-127, 128, (3, 4)).astype(np.int8)
    scales, zeros = positive(4), np.zeros(4, np.int8)
    path = tmp_path / "channels.onnx"
    given = saved(one("DequantizeLinear", weight, scales, zeros, fixed=[1, 2], axis=1), path)
    assert_same(torch_answers(path, given), [weight * scales])
    given = saved(one("QuantizeLinear", 9 * normal(5, 4), scales, zeros, fixed=[1, 2], axis=-1), path)
    (found,), (expected,) = torch_answers(path, given), runtime_answers(path, given)
    assert np.abs(found.astype(int) - expected).max() <= 1


def graph_of(path, nodes, inputs, outputs, weights, opset=21):
    graph = helper.make_graph(
        nodes, "several",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_sizes_are_computed_beside_the_program(batch, tmp_path):
    node = helper.make_node
    path = graph_of(
        tmp_path / "sizes.onnx",
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "first"], ["n"], axis=0),
            node("Shape", ["x"], ["tail"], start=1),
            node("ReduceProd", ["tail"], ["features"], keepdims=1),
            node("Mul", ["features", "two"], ["twice"]),
            node("Div", ["twice", "two"], ["once"]),
            node("Concat", ["n", "once"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["flat"]),
            node("ConstantOfShape", ["once"], ["ones"], value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])),
            node("Squeeze", ["once"], ["count"]),
            node("Range", ["start", "count", "step"], ["places"]),
            node("Cast", ["places"], ["ramp"], to=TensorProto.FLOAT),
            node("Add", ["ramp", "ones"], ["offset"]),
            node("Expand", ["offset", "target"], ["wide"]),
            node("Add", ["flat", "wide"], ["y"]),
        ],
        {"x": ["batch", 2, 3]}, ["y"],
        {"first": ints(0), "two": ints(2), "start": np.int64(0), "step": np.int64(1)},
    )  # fmt: skip
    module = as_module(path, batch)
    program = module.program()
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function" and "sym_" not in str(n.target)}
    assert {name.split(".")[1] for name in targets} <= {"reshape", "view", "expand", "add"} | (
        {"lift_fresh_copy"} if batch is None else set()
    )
    for count in (1, 5) if batch is None else (batch,):
        x = normal(count, 2, 3)
        (found,) = program.module()(torch.from_numpy(x))
        assert_same([found.numpy()], [x.reshape(count, 6) + np.arange(1, 7, dtype=np.float32)])


@pytest.mark.parametrize("form", ["plain", "transposed", "quantized", "quantized and transposed"])
def test_a_product_with_a_constant_matrix_is_one_linear_layer(form, tmp_path):
    node = helper.make_node
    x, bias = normal(2, 3, 4), normal(5)
    weight, scales = RANDOM.integers(-127, 128, (4, 5)).astype(np.int8), positive(5)
    weights = {"scales": scales, "zeros": np.zeros(5, np.int8), "bias": bias}
    turned = form.endswith("transposed")
    if form.startswith("quantized"):
        nodes = [node("DequantizeLinear", ["w", "scales", "zeros"], ["float"], axis=0 if turned else 1)]
        weights["w"] = weight.T.copy() if turned else weight
    else:
        nodes = [node("Identity", ["w"], ["float"])] if turned else []
        weights["w" if turned else "float"] = (weight * scales).T.copy() if turned else weight * scales
    if turned:
        nodes.append(node("Transpose", ["float"], ["matrix"], perm=[1, 0]))
    nodes += [
        node("MatMul", ["x", "matrix" if turned else "float"], ["product"]),
        node("Add", ["bias", "product"], ["y"]),
    ]
    if form == "transposed":  # of an initializer: an Identity would hide it
        nodes, weights["float"] = nodes[1:], weights.pop("w")
    path = graph_of(tmp_path / "linear.onnx", nodes, {"x": x.shape}, ["y"], weights)
    program = as_module(path, None).program()
    kinds = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    first = ["quantized_decomposed.dequantize_per_channel.default"] if form.startswith("quantized") else []
    assert kinds == [*first, "aten.linear.default"]
    (found,) = program.module()(torch.from_numpy(x))
    assert_same([found.numpy()], [x @ (weight * scales) + bias])


@pytest.mark.parametrize("batch", [None, 24])
@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_answers_as_in_onnx_runtime(name, form, batch, floats, tmp_path):  # noqa: F811
    scheme = QuantizationScheme(
        activations="int8", symmetric_activations=False, per_channel=True, int32_bias=True, source="-"
    )
    device = load_device("cpu-ort").model_copy(update={"quantization": scheme})
    artifact = quantized(floats[name], device) if form == "int8" else floats[name]
    path = lowered(artifact, device, tmp_path / "model.onnx")
    x = images(24, 99)
    found, expected = torch_answers(path, {"image": x.numpy()}, batch), runtime_answers(path, {"image": x.numpy()})
    if form == "float32":
        assert_same(found, expected)
    else:  # a tie that falls otherwise is a step of some tensor inside
        with torch.no_grad():
            change = artifact.model(x).numpy() - floats[name].model(x).numpy()
        assert np.square(found[0] - expected[0]).mean() <= 0.25 * np.square(change).mean()


def refusal(path, batch=1):
    with pytest.raises(TargetError) as error:
        as_module(path, batch)
    return str(error.value)


def test_an_unknown_operator_is_named_with_its_node_and_what_to_do(tmp_path):
    path = tmp_path / "lstm.onnx"
    saved(one("LSTM", normal(3, 2, 4), normal(1, 20, 4), normal(1, 20, 5), fixed=[1, 2], hidden_size=5), path)
    assert re.search(r"lstm\.onnx: operator LSTM \(node\) is not among .*\n.*→.*cpu-ort", refusal(path))


def test_a_branch_is_refused_by_name(tmp_path):
    one_way = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["a"])], "a", [], [helper.make_empty_tensor_value_info("a")]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["b"])], "b", [], [helper.make_empty_tensor_value_info("b")]
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["truth"], to=TensorProto.BOOL),
        helper.make_node("If", ["truth"], ["y"], name="exit", then_branch=one_way, else_branch=other),
    ]
    path = graph_of(tmp_path / "if.onnx", nodes, {"x": [1, 2]}, ["y"], {})
    assert re.search(r"operator If \(exit\) chooses by data", refusal(path))
    assert "If" in CONTROL


def test_what_torch_computes_otherwise_is_refused_by_node(tmp_path):
    path = tmp_path / "odd.onnx"
    x = np.array([1, 1, 2, 2], np.float32)
    saved(one("Resize", IMAGE, None, x, fixed=[2], mode="linear", coordinate_transformation_mode="asymmetric"), path)
    assert re.search(r"operator Resize \(node\) is linear by 'asymmetric'", refusal(path))
    saved(one("Reshape", IMAGE, ints(-1)), path)
    assert re.search(r"operator Reshape \(node\) has input 1 computed from data", refusal(path))
    graph_of(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", "length"]}, ["y"], {})
    assert "'x' has the free size length" in refusal(path)
    graph_of(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], {}, opset=11)
    assert "opset 11" in refusal(path)
    path.write_text("hello")
    assert "is not an ONNX file" in refusal(path)
