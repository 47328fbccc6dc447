"""On which processors a file's integers are right: by its weights, by the profile, and as it is told."""

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_parity import floats, lowered, quantized  # noqa: F401 (a fixture)

from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from kdc.numerics.affine import highest_weight
from targets import proc
from targets.device import load_device, names
from targets.integers import LARGEST_EXACT_WEIGHT, WIDE_SUMS, integer_notes, largest_weight
from targets.measure import Settings, compare
from targets.runtime import running, runtime_of

X86 = "processor\t: 0\nvendor_id\t: A\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC\nflags\t\t: fpu avx2 {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    def write(text):
        monkeypatch.setattr(proc, "CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(text)

    return write


def test_two_products_of_bytes_fit_16_bits_up_to_the_largest_exact_weight():
    assert 2 * 255 * LARGEST_EXACT_WEIGHT <= 2**15 - 1 < 2 * 255 * (LARGEST_EXACT_WEIGHT + 1)
    assert highest_weight(7) <= LARGEST_EXACT_WEIGHT < highest_weight(8)


@pytest.mark.parametrize("target", names())
def test_a_profile_of_kernels_that_saturate_has_weights_that_cannot_or_names_the_features_that_it_needs(target):
    device = load_device(target)
    scheme = device.quantization
    saturates = device.runtime in ("onnxruntime", "openvino") and device.architecture in ("", "x86_64")
    if scheme is None or not saturates:
        return
    assert scheme.requires_any_feature == WIDE_SUMS or highest_weight(scheme.weight_bits) <= LARGEST_EXACT_WEIGHT


@pytest.mark.parametrize(
    ("target", "name", "largest"),
    [("cpu-ort", "transformer", 63), ("cpu-ort-vnni", "perceptron", 127)],
)
def test_the_largest_weight_of_a_file_is_that_of_its_targets_bits(target, name, largest, floats, tmp_path):  # noqa: F811
    device = load_device(target)
    path = lowered(quantized(floats[name], device), device, tmp_path / "model.onnx")
    assert largest_weight([path]) == largest


def test_a_float_file_has_no_weight_in_integers(linear):
    assert largest_weight([linear()[0].path]) is None


def product(folder, weight, kind):
    """A file that multiplies by a weight, in one of the forms that integers have in ONNX files."""
    constants = {"w": weight, "s": np.float32(0.1), "z": np.uint8(3), "wz": np.zeros((), weight.dtype)}
    nodes = [("QuantizeLinear", ["x", "s", "z"], ["q"])]
    if kind == "QLinearMatMul":
        nodes += [
            (kind, ["q", "s", "z", "w", "s", "wz", "s", "z"], ["p"]),
            ("DequantizeLinear", ["p", "s", "z"], ["y"]),
        ]
    elif kind in ("MatMulInteger", "a constant's node"):
        nodes += [("MatMulInteger", ["q", "w", "z", "wz"], ["p"]), ("Cast", ["p"], ["y"])]
    else:
        nodes += [
            ("DequantizeLinear", ["q", "s", "z"], ["d"]),
            ("DequantizeLinear", ["w", "s", "wz"], ["v"]),
            ("Transpose", ["v"], ["t"]),
            ("MatMul", ["d", "t"], ["y"]),
        ]
    made = [helper.make_node(op, given, out, **({"to": 1} if op == "Cast" else {})) for op, given, out in nodes]
    inner = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    if kind == "in a branch":
        # the product stands in a branch of an If, the weight outside of it
        branch = helper.make_graph(made[1:], "then", [], [y])
        other = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "else", [], [
            helper.make_tensor_value_info("same", TensorProto.FLOAT, [1, 4])
        ])  # fmt: skip
        inner.append(numpy_helper.from_array(np.array(True), "c"))
        made = [made[0], helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)]
    if kind == "a constant's node":
        made.insert(0, helper.make_node("Constant", [], ["w"], value=inner.pop(0)))
    path = folder / "product.onnx"
    graph = helper.make_graph(made, "g", [x], [y], inner)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    "kind", ["QLinearMatMul", "MatMulInteger", "a constant's node", "behind a transpose", "in a branch"]
)
def test_a_weight_is_found_in_every_form_that_files_have_it_in(kind, tmp_path):
    weight = np.full((4, 4), -100, np.int8)
    assert largest_weight([product(tmp_path, weight, kind)]) == 100
    assert largest_weight([product(tmp_path, weight.astype(np.uint8), kind)]) is None


@pytest.mark.parametrize(
    ("weight", "features", "said"),
    [
        (127, ["avx2", "avx512_vnni"], "avx2, avx512_vnni; its weights have 8 bits: on an x86 processor without VNNI"),
        (127, ["avx2", "avx512f"], "avx2, avx512f; its integers are wrong there: 8-bit weights saturate"),
        (127, None, "features that are unknown; its weights have 8 bits"),
        (-128, ["avx_vnni"], "its weights have 8 bits"),
        (63, ["avx2"], "with avx2; its weights have 7 bits: no sum saturates"),
        (64, ["avx2"], "no sum saturates"),
        (65, ["avx2"], "its integers are wrong there"),
    ],
)
def test_what_is_told_follows_the_weights_and_the_processor(weight, features, said, tmp_path):
    path = product(tmp_path, np.full((4, 4), weight, np.int8), "MatMulInteger")
    file = DeviceFile(path, "onnxruntime")
    found = {"architecture": "x86_64", "processor_features": features}
    (note,) = integer_notes([file, file], runtime_of(load_device("cpu-ort")), found)
    assert note.startswith("product.onnx: integers, judged on a processor with ")
    assert said in note
    arm = {"architecture": "aarch64", "processor_features": ["asimd"]}
    (note,) = integer_notes([file], runtime_of(load_device("cpu-ort")), arm)
    assert note == "product.onnx: integers, judged on a processor with asimd"


def test_a_measurement_tells_it_and_names_the_features(linear, tmp_path):
    device = load_device("cpu-ort")
    path = product(tmp_path, np.full((4, 4), 90, np.int8), "QLinearMatMul")
    settings = Settings(seconds=0.1, processes_min=3, processes_max=3, slice_seconds=0.02)
    found = compare(DeviceFile(path, "onnxruntime"), linear()[0], device, settings=settings)
    assert sum("integers" in note for note in found.notes) == 1
    features = found.environment["processor_features"]
    assert features == list(proc.cpu_features() or []) or features is None
    assert {"cpu", "cpu_family", "architecture"} <= set(found.environment)


def test_features_are_read_from_cpuinfo(cpuinfo, tmp_path, monkeypatch):
    cpuinfo(X86.format("avx512_vnni sse avx512f"))
    assert proc.cpu_features() == ("avx2", "avx512f", "avx512_vnni")
    assert proc.cpu_family() == "cpu family 25, model 17"
    cpuinfo(ARM)
    assert proc.cpu_features() == ("asimd", "asimddp")
    assert proc.cpu_family() == "CPU implementer 0x41, CPU part 0xd0b"
    monkeypatch.setattr(proc, "CPUINFO", tmp_path / "nowhere")
    assert proc.cpu_features() is None
    assert proc.cpu_family() is None


@pytest.mark.parametrize("target", ["cpu-ort-vnni", "cpu-openvino-vnni"])
def test_a_target_of_vnni_is_refused_where_the_processor_has_none(target, cpuinfo):
    device = load_device(target)
    try:
        runtime_of(device)
    except TargetError as error:
        pytest.skip(str(error).splitlines()[0])
    if device.architecture != platform.machine():
        pytest.skip("another architecture is the first reason")
    cpuinfo(X86.format("avx512f avx512bw"))
    with pytest.raises(
        TargetError, match="right on a processor with avx512_vnni or avx_vnni or amx_int8.*none of them"
    ):
        running(device)
    running(load_device(target.removesuffix("-vnni")))
    cpuinfo(X86.format("avx_vnni"))
    running(device)
    cpuinfo("processor\t: 0\n")  # what is not told is not refused
    running(device)
