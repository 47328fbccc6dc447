"""LiteRT's files: real integer kernels, float ends, the ONNX file's own integers, and its order of inputs and outputs."""

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_parity import floats, images, lowered, quantized  # noqa: F401 (a fixture)

from kdc.core.errors import TargetError
from targets.device import load_device
from targets.runtime import Port, runtime_of


@pytest.fixture(scope="module")
def litert():
    device = load_device("cpu-litert")
    try:
        return device, runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(scope="module")
def integer(litert, floats, tmp_path_factory):  # noqa: F811
    """The convolutions of the parity tests in integers: the ONNX file and the built one."""
    folder = tmp_path_factory.mktemp("integer")
    device, runtime = litert
    path = lowered(quantized(floats["convolutions"], device), device, folder / "model.onnx")
    return path, runtime.build(path, folder / "built", device)


def schema(path):
    from ai_edge_litert import schema_py_generated

    model = schema_py_generated.Model.GetRootAsModel(path.read_bytes(), 0)
    return schema_py_generated, schema_py_generated.ModelT.InitFromObj(model)


def test_every_operator_between_the_ends_runs_in_integers(integer):
    from targets.litert_file import operators

    _, built = integer
    layers = operators(built.path.read_bytes())
    assert {"CONV_2D", "MAX_POOL_2D", "FULLY_CONNECTED"} <= {layer.kind for layer in layers}
    assert layers[0].kind == "QUANTIZE"
    assert (layers[-1].kind, layers[-1].formats) == ("DEQUANTIZE", ("float32",))
    assert {layer.formats for layer in layers[:-1]} == {("int8",)}


def test_a_file_of_uint8_runs_in_int8_and_answers_as_onnx_runtime_does(litert, floats, tmp_path):  # noqa: F811
    device, runtime = litert
    path = lowered(quantized(floats["convolutions"], load_device("cpu-ort")), device, tmp_path / "model.onnx")
    assert "UINT8" in str({TensorProto.DataType.Name(one.data_type) for one in onnx.load(path).graph.initializer})
    x = images(8, 7).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": x})
    built = runtime.build(path, tmp_path / "built", device)
    (found,) = runtime.load(built, device).run([x])
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.01 * np.sqrt(np.mean(expected**2))
    from targets.litert_file import operators

    formats = {layer.formats for layer in operators(built.path.read_bytes()) if layer.kind == "CONV_2D"}
    assert formats == {("int8",)}


def test_what_falls_back_to_floats_is_seen_among_the_layers(litert, floats, tmp_path):  # noqa: F811
    device, runtime = litert
    scheme = device.quantization.model_copy(update={"linear_outputs": False})
    device = device.model_copy(update={"quantization": scheme})
    path = lowered(quantized(floats["perceptron"], device), device, tmp_path / "model.onnx")
    formats = [layer.formats for layer in runtime.layers(path, device) if layer.kind == "FULLY_CONNECTED"]
    assert formats == [("int8",), ("float32",)]  # no kernel takes integers and gives floats


def test_the_kernels_integers_and_scales_are_those_of_the_onnx_file(integer):
    path, built = integer
    _, model = schema(built.path)
    graph = model.subgraphs[0]
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    kernels = [values for values in held.values() if values.dtype == np.int8 and values.ndim == 4]
    found = {
        tuple(map(int, tensor.shape)): np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8)
        for tensor in graph.tensors
        if tensor.type == 9 and len(tensor.shape) == 4 and model.buffers[tensor.buffer].data is not None
    }
    assert len(kernels) == len(found) == 2
    for kernel in kernels:
        last = kernel.transpose(0, 2, 3, 1)  # channels last
        np.testing.assert_array_equal(found[last.shape].reshape(last.shape), last)
    scale = next(held[node.input[1]] for node in onnx.load(path).graph.node if node.op_type == "QuantizeLinear")
    first = graph.tensors[graph.operators[0].outputs[0]]
    np.testing.assert_allclose(first.quantization.scale, scale, rtol=1e-6)


def test_constants_lie_where_kernels_want_them(integer):
    _, built = integer
    written = built.path.read_bytes()
    generated, _ = schema(built.path)
    whole = generated.Model.GetRootAsModel(written, 0)
    tables = [whole.Buffers(index) for index in range(whole.BuffersLength())]
    starts = [table._tab.Vector(table._tab.Offset(4)) for table in tables if table.DataLength()]
    assert len(starts) > 4
    assert all(start % 16 == 0 for start in starts)


def test_layers_are_those_of_the_built_file(litert, integer):
    device, runtime = litert
    path, _ = integer
    assert [(one.kind, one.formats) for one in runtime.layers(path, device)][-1] == ("DEQUANTIZE", ("float32",))


def test_inputs_and_outputs_keep_the_order_and_the_shapes_of_the_onnx_file(litert, tmp_path):
    device, runtime = litert
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["zw"]),
        helper.make_node("Add", ["zw", "a"], ["late"]),
        helper.make_node("Relu", ["picture"], ["early"]),
        helper.make_node("Neg", ["a"], ["b"]),
    ]
    inputs = {"z": ("n", 5), "picture": ("n", 2, 3, 4), "a": ("n", 7)}
    outputs = {"late": ("n", 7), "early": ("n", 2, 3, 4), "b": ("n", 7)}
    ends = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()]
            for ports in (inputs, outputs))  # fmt: skip
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    engine = runtime.load(runtime.build(path, tmp_path / "built", device), device)
    assert engine.inputs == tuple(Port(name, shape, "float32") for name, shape in inputs.items())
    random = np.random.default_rng(1)
    values = {name: random.normal(size=(3, *shape[1:])).astype(np.float32) for name, shape in inputs.items()}
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(list(outputs), values)
    for found, wanted in zip(engine.run(list(values.values())), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_is_run_as_many_samples_at_a_time_as_the_file_was_built_for(litert, integer):
    device, runtime = litert
    _, built = integer
    engine = runtime.load(built, device)
    x = images(3, 5).numpy()
    together = engine.run([x])[0]
    np.testing.assert_array_equal(together, np.concatenate([engine.run([x[i : i + 1]])[0] for i in range(3)]))


def test_a_machine_without_the_converter_runs_files_and_says_what_building_needs(
    litert, integer, tmp_path, monkeypatch
):
    device, runtime = litert
    path, built = integer
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litert_torch" else there(name))
    assert runtime.missing() is None
    assert "litert-torch" not in runtime.version()
    assert runtime.load(built, device).run([images(1, 5).numpy()])[0].shape == (1, 10)
    with pytest.raises(TargetError, match=r"litert-torch is not installed\n.*pip install 'kdc\[litert\]'"):
        runtime.build(path, tmp_path, device)


def test_a_file_that_differs_from_its_model_is_refused(litert, integer):
    from targets.litert_file import check

    _, built = integer
    written, ends = (
        built.path.read_bytes(),
        ((Port("image", (1, 3, 16, 16), "float32"),), (Port("y", ("n", 10), "float32"),)),
    )
    check(written, *ends, "m.onnx")
    for inputs, outputs, verb in (
        ((Port("image", (1, 16, 16, 3), "float32"),), ends[1], "takes"),
        ((Port("image", (1, 3, 16, 16), "int8"),), ends[1], "takes"),
        (ends[0], (Port("y", ("n", 11), "float32"),), "gives"),
        (ends[0], ends[1] * 2, "gives"),
    ):
        with pytest.raises(TargetError, match=rf"m\.onnx: what litert wrote is another model: it {verb}"):
            check(written, inputs, outputs, "m.onnx")
