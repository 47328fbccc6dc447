"""Core ML's files: what they hold, that they are the same each time, and that a program that differs is refused."""

import platform
import zipfile
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest
from mil import unpacked
from onnx import helper, numpy_helper

from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.coreml_check import check
from targets.coreml_package import Named, Operation, Program, constants, read_program
from targets.device import load_device
from targets.parts import move, renamed, sha256_of_parts
from targets.runtime import Port, running, runtime_of

WEIGHT = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)


def installed(target="mac-coreml"):
    device = load_device(target)
    try:
        return device, runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def quantized():
    """y = Q(x) @ W, the weight int8 [4, 6], as ONNX."""
    made = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]),
        helper.make_node("Gemm", ["d", "wd"], ["y"], transB=1),
    ]
    constants = {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8), "w": WEIGHT}
    return onnx_ir.from_proto(onnx_model(made, {"x": (1, 6)}, {"y": (1, 4)}, constants))


def onnx_model(nodes, inputs, outputs, constants=None):
    ends = ([helper.make_tensor_value_info(*one) for one in zip(ports, [1] * 9, ports.values(), strict=False)]
            for ports in (inputs, outputs))  # fmt: skip
    held = [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


ENDS = (Port("x", (1, 6), "float32"),), (Port("y", (1, 4), "float32"),)


def program(weight=WEIGHT):
    """The same as a program of Core ML's."""
    return Program(
        *ENDS,
        (
            Operation("const", {"val": np.array(0.5, np.float32)}, (Port("s", (), "float32"),)),
            Operation("quantize", {"input": Named("x"), "scale": Named("s")}, (Port("q", (1, 6), "int8"),)),
            Operation("dequantize", {"input": Named("q"), "scale": Named("s")}, (Port("d", (1, 6), "float32"),)),
            Operation("constexpr_affine_dequantize", {"quantized_data": weight}, (Port("w", (4, 6), "float32"),)),
            Operation("linear", {"x": Named("d"), "weight": Named("w")}, (Port("y", (1, 4), "float32"),)),
        ),
    )


def test_the_same_model_passes_whatever_the_order_of_a_weights_axes(quantized):
    for weight in (WEIGHT, WEIGHT.T):
        check(program(weight), quantized, *ENDS, "float32", "m.onnx")


def test_a_program_that_differs_is_refused_with_what_differs(quantized):
    other = WEIGHT.copy()
    other[2, 3] += 1
    whole = program()
    for changed, reason in (
        (program(other), "it lacks the integers of 'w'"),
        (program(WEIGHT.astype(np.int16)), "it lacks the integers of 'w'"),
        (replace(whole, operations=whole.operations[2:]), "it quantizes 0 values, not 1"),
        (replace(whole, inputs=(Port("x", (1, 7), "float32"),)), r"takes x float32 \[1, 7\], not x float32 \[1, 6\]"),
        (replace(whole, outputs=(Port("y", (1, 4), "float16"),)), "gives y float16"),
        (replace(whole, outputs=(Port("z", (1, 4), "float32"),)), "gives z float32"),
        (replace(whole, outputs=(*whole.outputs, *whole.outputs)), "gives y .*, y"),
    ):
        with pytest.raises(TargetError, match=rf"m\.onnx: what coreml wrote is another model: .*{reason}"):
            check(changed, quantized, *ENDS, "float32", "m.onnx")
    with pytest.raises(TargetError, match=r"float32 where float16 was asked: \{'const': 1, .*'dequantize': 1"):
        check(whole, quantized, *ENDS, "float16", "m.onnx")


def test_a_size_that_the_model_leaves_open_fits_any(quantized):
    open_ends = ENDS[0], (Port("y", ("batch", 4), "float32"),)
    check(program(), quantized, *open_ends, "float32", "m.onnx")


def test_the_weights_in_the_package_are_the_files(tmp_path, linear):
    device, runtime = installed()
    source, weight = linear(inputs=256, outputs=64)
    built = runtime.build(source.path, tmp_path / "built", device)
    found = constants(read_program(unpacked(built, tmp_path / "package")))
    assert any(values.size == weight.size and np.array_equal(np.sort(values, None), np.sort(weight, None))
               for values in found.values())  # fmt: skip


def test_a_float16_file_is_half_as_large_and_takes_and_gives_float32(tmp_path, linear):
    source, weight = linear(inputs=256, outputs=64)
    sizes = {}
    for target in ("mac-coreml", "iphone-coreml"):
        device, runtime = installed(target)
        built = runtime.build(source.path, tmp_path / target, device)
        sizes[target] = built.path.stat().st_size
        program = read_program(unpacked(built, tmp_path / f"{target}-package"))
        assert {port.dtype for port in (*program.inputs, *program.outputs)} == {"float32"}
    assert sizes["mac-coreml"] - sizes["iphone-coreml"] == pytest.approx(2 * weight.size, rel=0.1)


def test_a_file_is_the_same_each_time_it_is_built(tmp_path, linear):
    device, runtime = installed()
    source, _ = linear()
    first, second = (runtime.build(source.path, tmp_path / name, device) for name in ("first", "second"))
    assert sha256_of_parts(first, runtime) == sha256_of_parts(second, runtime)


def test_a_package_is_one_file_that_is_moved_and_renamed(tmp_path, linear):
    device, runtime = installed()
    built = runtime.build(linear()[0].path, tmp_path / "built", device)
    assert list(renamed(built, runtime, "student")) == ["student.zip", "student.ports.json"]
    moved = move(built, runtime, tmp_path / "moved")
    with zipfile.ZipFile(moved.path) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"model.mlpackage"}
        assert archive.testzip() is None


def test_names_that_a_program_cannot_have_are_replaced_inside_and_kept_outside(tmp_path):
    device, runtime = installed()
    node = helper.make_node("Sub", ["image.1", "other"], ["logits:0"])
    free = ("batch", 3)
    onnx.save(onnx_model([node], {"image.1": free, "other": free}, {"logits:0": free}), tmp_path / "m.onnx")
    built = runtime.build(tmp_path / "m.onnx", tmp_path / "built", device)
    program = read_program(unpacked(built, tmp_path / "package"))
    assert [port.name for port in program.inputs] == ["in_0", "in_1"]
    assert '"image.1"' in runtime.files(built)[1].read_text()


def test_off_macos_a_file_is_built_and_not_run(tmp_path, linear):
    device, runtime = installed()
    if platform.system() == "Darwin":
        pytest.skip("this machine has Core ML")
    built = runtime.build(linear()[0].path, tmp_path / "built", device)
    assert built.path.is_file()
    with pytest.raises(TargetError, match="mac-coreml: its files cannot be run here: Core ML is a part of macOS"):
        running(device)
    with pytest.raises(TargetError, match=r"linear\.zip: cannot be loaded here: Core ML is a part of macOS"):
        runtime.load(built, device)


def test_layers_tell_the_formats_of_a_program(linear):
    device, runtime = installed("iphone-coreml")
    layers = runtime.layers(linear()[0].path, device)
    assert ("linear", ("float16",)) in [(layer.kind, layer.formats) for layer in layers]
    assert "const" not in {layer.kind for layer in layers}


def test_a_package_that_is_none_is_one_message(tmp_path):
    installed()
    with pytest.raises(TargetError, match=r"m\.mlpackage: is no ML program"):
        read_program(tmp_path / "m.mlpackage")


def test_compute_units_that_core_ml_has_not_are_an_error(tmp_path, linear, monkeypatch):
    device, runtime = installed()
    (tmp_path / "m.zip").write_bytes(b"")
    (tmp_path / "m.ports.json").write_text('{"inputs": [], "outputs": []}')
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    odd = device.model_copy(update={"providers": ("TPU",)})
    with pytest.raises(TargetError, match="no compute units 'TPU'; it has ALL, CPU_ONLY"):
        runtime.load(DeviceFile(tmp_path / "m.zip", "coreml"), odd)
    with pytest.raises(TargetError, match=r"m\.zip: coreml cannot load it"):
        runtime.load(DeviceFile(tmp_path / "m.zip", "coreml"), device)
