"""What a file takes by its graph."""

from kdc.core.spec import DeviceFile
from targets.on_paper import on_paper, sentence
from targets.onnxruntime import RUNTIME


def test_weights_are_told_apart_by_where_they_lie(linear):
    inside, beside = linear("in.onnx")[0].path, linear("out.onnx", external=True)[0].path
    one = on_paper(DeviceFile(inside, "onnxruntime"), RUNTIME)
    assert (one.weights_inside_bytes, one.weights_beside_bytes) == (8 * 4 * 4, 0)
    assert one.files_bytes == inside.stat().st_size
    data = beside.with_name("out.onnx.data")
    two = on_paper(DeviceFile(beside, "onnxruntime"), RUNTIME)
    assert (two.weights_inside_bytes, two.weights_beside_bytes) == (0, 128)
    assert two.files_bytes == beside.stat().st_size + data.stat().st_size
    assert one.activations_bytes == two.activations_bytes == (8 + 4) * 4
    assert "activations 4.8e-05 MB at MatMul" in sentence(one)
