"""Small ONNX files to build, load and measure."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.core.spec import DeviceFile
from targets.device import load_device


@pytest.fixture(scope="session")
def device():
    return load_device("cpu-ort")


@pytest.fixture
def linear(tmp_path):
    """Make a file of y = x @ w with w [inputs, outputs]."""

    def make(name="linear.onnx", inputs=8, outputs=4, *, external=False, free="batch"):
        weight = np.random.default_rng(0).normal(size=(inputs, outputs)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [free, inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [free, outputs])],
            [numpy_helper.from_array(weight, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        path = tmp_path / name
        onnx.save(
            model, path, save_as_external_data=external, location=f"{name}.data" if external else None, size_threshold=0
        )
        return DeviceFile(path, "onnxruntime"), weight

    return make
