"""The door: a bad file is turned away with one message before anything is measured."""

import itertools
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.core.errors import KdcError, TargetError
from kdc.numerics.cost import count
from targets.door.enter import entered
from targets.door.examine import ask_for_shapes, examine, unknown_sizes
from targets.door.shapes import fix_shapes, parse_shapes
from targets.runtime import Port
from targets.skips import skips

FLOAT = TensorProto.FLOAT


def info(name, shape=(1, 8), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def build(nodes, inputs=None, outputs=None, weights=(), opset=21, functions=(), imports=()):
    graph = helper.make_graph(nodes, "g", inputs or [info("x")], [info("y")] if outputs is None else outputs, weights)
    opsets = [helper.make_opsetid("", opset), *imports]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


@pytest.fixture
def saved(tmp_path):
    def save(model, name="m.onnx"):
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return save


@pytest.fixture
def small(linear):
    return linear()[0].path


def refused(path, match, **options):
    with pytest.raises(TargetError, match=match) as caught:
        examine(path, **options)
    assert caught.value.exit_code == 2
    assert "→" in str(caught.value)


def test_a_good_file_passes_with_its_inputs(small):
    found = examine(small)
    assert found.inputs == (Port("x", ("batch", 8), "float32"),)
    assert found.weights == ()


def test_what_is_no_file_is_said(tmp_path, small):
    refused(tmp_path / "gone.onnx", "no such file")
    refused(tmp_path, "is no file")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", "is empty")
    (tmp_path / "text.onnx").write_text("this is no model\n")
    refused(tmp_path / "text.onnx", "no whole ONNX file")
    whole = small.read_bytes()
    small.write_bytes(whole[: len(whole) // 2])
    refused(small, "no whole ONNX file")


def test_a_circle_is_shown_in_the_direction_of_its_values(saved):
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Neg", ["b"], ["c"], "third"),
        helper.make_node("Relu", ["c"], ["y"], "last"),
    ]
    with pytest.raises(TargetError, match="circle") as caught:
        examine(saved(build(nodes)))
    text = str(caught.value)
    shown = list(text.partition("circle: ")[2].splitlines()[0].replace("'", "").split(" → "))
    names = [one.split()[1] for one in shown]
    assert names[0] == names[-1]
    after = {"first": "second", "second": "third", "third": "first"}
    assert all(after[one] == next_one for one, next_one in itertools.pairwise(names))


def test_nodes_in_a_wrong_order_are_no_circle_but_must_be_sorted(saved):
    nodes = [helper.make_node("Relu", ["a"], ["y"], "late"), helper.make_node("Neg", ["x"], ["a"], "early")]
    refused(saved(build(nodes)), "Relu 'late' reads 'a' before Neg 'early' makes it")


def test_an_input_that_nothing_makes_is_named(saved):
    refused(saved(build([helper.make_node("Add", ["x", "lost"], ["y"], "sum")])), r"Add 'sum' reads 'lost'")
    refused(saved(build([helper.make_node("Relu", ["x"], ["z"])])), "output 'y' is made by nothing")
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"], "n")]
    refused(saved(build(twice)), "'y' is made twice")


def test_a_body_sees_what_is_around_it_and_nothing_else(saved):
    def model(read):
        body = helper.make_graph([helper.make_node("Relu", [read], ["t"])], "then", [], [info("t")])
        other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "else", [], [info("e")])
        branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
        return build([branch], [info("x"), info("c", [], TensorProto.BOOL)])

    assert len(examine(saved(model("x"))).inputs) == 2
    refused(saved(model("lost")), "reads 'lost'")
    refused(saved(model("y")), "circle")


def test_a_graph_without_outputs_is_refused(saved):
    refused(saved(build([helper.make_node("Relu", ["x"], ["y"])], outputs=[])), "no output")


def test_an_unknown_operator_is_named_with_one_that_is_near(saved):
    refused(saved(build([helper.make_node("Relo", ["x"], ["y"])])), "(?s)'Relo'.*opset 21.*Relu")
    refused(saved(build([helper.make_node("Gelu", ["x"], ["y"])], opset=18)), "(?s)'Gelu'.*opset 20 or later")
    up = helper.make_node("Upsample", ["x", "s"], ["y"])
    refused(saved(build([up], [info("x"), info("s", [2])])), "any more")
    refused(saved(build([helper.make_node("Relu", ["x"], ["y"])], opset=9999)), "opset 9999")


def test_a_node_must_have_its_operators_form(saved):
    refused(saved(build([helper.make_node("Relu", ["x", "x"], ["y"], "two")])), "Relu 'two'")
    refused(saved(build([helper.make_node("Relu", ["x"], ["y"], "odd", slope=1.0)])), "Relu 'odd'")


def test_custom_operators_are_counted_by_name(saved):
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], domain="my.ops"),
        helper.make_node("Foo", ["a"], ["b"], domain="my.ops"),
        helper.make_node("Bar", ["b"], ["y"], domain="my.ops"),
    ]
    path = saved(build(nodes, imports=[helper.make_opsetid("my.ops", 1)]))
    refused(path, r"my\.ops::Foo \(2 nodes\), my\.ops::Bar \(1 node\)")
    assert examine(path, domains={"my.ops"}).inputs[0].name == "x"


def test_an_operator_that_the_file_defines_itself_is_none(saved):
    body = [helper.make_node("Relu", ["i"], ["o"])]
    function = helper.make_function("my.ops", "Foo", ["i"], ["o"], body, [helper.make_opsetid("", 21)])
    node = helper.make_node("Foo", ["x"], ["y"], domain="my.ops")
    imports = [helper.make_opsetid("my.ops", 1)]
    assert examine(saved(build([node], functions=[function], imports=imports))).inputs
    function.node[0].op_type = "Relo"
    refused(saved(build([node], functions=[function], imports=imports)), "Relo")


def external(folder, location, *, offset="0", length="128", weight=(8, 4)):
    """A file whose one weight lies at `location`."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=weight, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], outputs=[info("y", (1, 4))], weights=[tensor])
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_elsewhere_are_refused_and_not_read(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(128))
    secret.chmod(0)  # to read it would fail, to be refused does not
    (folder / "link.bin").symlink_to(secret)
    (folder / "inner").symlink_to(tmp_path)
    for location, why in [
        (str(secret), "absolute"),
        ("../secret.bin", "outside"),
        ("a/../../secret.bin", "outside"),
        ("C:\\secret.bin", "absolute"),
        ("..\\secret.bin", "outside"),
        ("link.bin", "symbolic link"),
        ("inner/secret.bin", "symbolic link"),
        ("", "names no file"),
    ]:
        refused(external(folder, location), f"(?s){why}.*not read")


def test_weights_beside_the_file_are_there_and_long_enough(tmp_path):
    data = tmp_path / "w.bin"
    refused(external(tmp_path, "w.bin"), "not there")
    data.write_bytes(bytes(128))
    assert examine(external(tmp_path, "w.bin")).weights == (data,)
    data.write_bytes(bytes(127))
    refused(external(tmp_path, "w.bin"), "ends at byte 128, and the file at 127")
    data.write_bytes(bytes(128))
    refused(external(tmp_path, "w.bin", offset="1"), "ends at byte 129")
    refused(external(tmp_path, "w.bin", length="64"), "takes 128 bytes, and 64")
    refused(external(tmp_path, "w.bin", offset="-4"), "cannot be read")
    refused(external(tmp_path, "."), "no file")


def test_the_weights_beside_a_file_are_not_loaded(tmp_path):
    size = 2**33  # of a file with holes: 8 GB that take no disk, and would take memory
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(size)
    path = external(tmp_path, "w.bin", length=str(size), weight=(8, 2**28))
    assert examine(path).weights == (tmp_path / "w.bin",)


def test_a_weight_in_the_file_has_the_length_of_its_shape(saved):
    weight = numpy_helper.from_array(np.zeros((8, 4), np.float32), "w")
    weight.raw_data = weight.raw_data[:-1]
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], outputs=[info("y", (1, 4))], weights=[weight])
    refused(saved(model), "takes 128 bytes, and the file holds 127")


@pytest.mark.parametrize(
    "kind", ["FLOAT", "INT64", "BOOL", "FLOAT16", "INT4", "UINT2", "BFLOAT16", "STRING", "COMPLEX64"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_weights_of_every_type_pass(saved, kind, raw):
    if raw and kind in ("STRING", "COMPLEX64"):
        pytest.skip("onnx writes no such bytes")
    data_type = getattr(TensorProto, kind)
    values = [b"a", b"b", b"c"] if kind == "STRING" else [1, 0, 1]
    array = np.array(values, helper.tensor_dtype_to_np_dtype(data_type))
    tensor = numpy_helper.from_array(array, "w") if raw else helper.make_tensor("w", data_type, [3], values)
    model = build([helper.make_node("Relu", ["x"], ["y"])], weights=[tensor])
    model.ir_version = 13
    assert examine(saved(model)).inputs


def test_inputs_that_numpy_has_no_numbers_for_are_refused(saved):
    relu = [helper.make_node("Identity", ["x"], ["y"])]
    refused(saved(build(relu, [info("x", [1], TensorProto.BFLOAT16)])), "bfloat16")
    refused(saved(build(relu, [info("x", [1], TensorProto.STRING)])), "string")
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, [1])
    refused(saved(build(relu, [sequence])), "a sequence")


def asked(path):
    with pytest.raises(TargetError) as caught:
        ask_for_shapes(path, examine(path).inputs)
    return str(caught.value)


def test_sizes_that_nothing_tells_are_asked_for_as_they_are_typed(saved):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    free = saved(build(relu, [info("x", ["batch", 3, "h", "w"])]))
    assert "--shape x=1,3,224,224" in asked(free)
    none = saved(build(relu, [helper.make_tensor_value_info("x", FLOAT, None)]))
    assert "has no shape" in asked(none)
    assert "--shape x=" in asked(none)
    batch = saved(build(relu, [info("x", ["batch", 8])]))
    ask_for_shapes(batch, examine(batch).inputs)
    zero = saved(build(relu, [info("x", [1, 0])]))
    assert unknown_sizes(examine(zero).inputs)


def test_shapes_are_read_as_typed():
    assert parse_shapes(["x=1,3,224,224", "a=b=2"]) == {"x": (1, 3, 224, 224), "a=b": (2,)}
    for bad in ("x", "=1", "x=", "x=1,,2", "x=0", "x=-1", "x=1.5", "x=a", "x=99999999999999"):
        with pytest.raises(TargetError, match="--shape"):
            parse_shapes([bad])
    with pytest.raises(TargetError, match="already"):
        parse_shapes(["x=1", "x=2"])


def test_a_named_size_is_fixed_wherever_it_stands(saved, tmp_path):
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    inputs = [info("x", ["batch", "n"]), info("z", ["batch", "n"])]
    path = saved(build(nodes, inputs, [info("y", ["batch", "n"])]))
    out = tmp_path / "out"
    out.mkdir()
    fixed = fix_shapes(examine(path), path, {"x": (2, 5)}, out)
    assert [port.shape for port in examine(fixed).inputs] == [(2, 5), (2, 5)]
    shape = onnx.load(fixed).graph.output[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [2, 5]
    assert examine(path).inputs[0].shape == ("batch", "n")


def test_shapes_that_do_not_fit_are_refused(saved, tmp_path):
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    path = saved(build(nodes, [info("x", ["batch", "n"]), info("z", ["batch", 3])]))
    for shapes, why in [
        ({"q": (1, 1)}, "no input 'q'"),
        ({"z": (1, 4)}, r"\[batch, 3\]"),
        ({"z": (1, 3, 3)}, r"\[batch, 3\]"),
        ({"x": (1, 3), "z": (2, 3)}, "'batch' would be 1 and 2"),
    ]:
        with pytest.raises(TargetError, match=why):
            fix_shapes(examine(path), path, shapes, tmp_path)


def test_what_is_measured_has_the_fixed_sizes_and_its_weights(linear):
    file, _ = linear(external=True, free="batch")
    with entered([file.path], {"x": (3, 8)}) as (fixed,):
        assert fixed != file.path
        model = onnx.load(fixed)
        assert model.graph.initializer[0].raw_data == onnx.load(file.path).graph.initializer[0].raw_data
        assert examine(fixed).inputs[0].shape == (3, 8)
    assert not fixed.exists()
    assert file.path.with_name("linear.onnx.data").exists()
    with entered([file.path]) as (same,):
        assert same == file.path


def damaged(whole, generator):
    """Cut at a random place, or with a few bytes changed, or both."""
    data = bytearray(whole)
    if generator.random() < 0.5:
        del data[int(generator.integers(len(data))) :]
    for _ in range(int(generator.integers(0, 4))):
        if data:
            data[int(generator.integers(len(data)))] = int(generator.integers(256))
    return bytes(data)


def models():
    weight = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "w")
    yield build(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["y"]),
        ],
        [info("x", ["batch", 1, 8, 8])],
        [info("y", ["batch", 4, 1, 1])],
        [weight],
    )
    then = helper.make_graph([helper.make_node("Relu", ["x"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["e"])], "else", [], [info("e")])
    yield build(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        [info("x"), info("c", [], TensorProto.BOOL)],
        weights=[numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")],
    )


@pytest.mark.parametrize("index", [0, 1])
def test_a_damaged_file_is_refused_cleanly_or_is_a_model(tmp_path, index):
    whole = list(models())[index].SerializeToString()
    generator = np.random.default_rng(index)
    path, passed, turned_away = tmp_path / "m.onnx", 0, 0
    for _ in range(1500):
        path.write_bytes(damaged(whole, generator))
        try:
            found = examine(path)
        except TargetError as error:
            turned_away += 1
            assert str(path) in str(error)
            assert "→" in str(error)
            continue
        passed += 1
        assert found.model.graph.output
    assert passed > 20  # bytes of weights and of names may change without harm
    assert turned_away > 500


def test_what_passes_can_be_counted_or_is_refused_by_name(tmp_path):
    """Behind the door the file's multiply-accumulates are counted and its branches looked at, in the same process."""
    import onnx_ir

    path = tmp_path / "m.onnx"
    for index, model in enumerate(models()):
        generator = np.random.default_rng(10 + index)
        whole = model.SerializeToString()
        for _ in range(300):
            path.write_bytes(damaged(whole, generator))
            try:
                examine(path)
                skips([path])
                count(onnx_ir.load(path))
            except KdcError:
                continue


def test_every_refusal_is_exit_code_2_and_no_traceback(kdc, tmp_path, small):
    small.write_bytes(small.read_bytes()[:50])
    result = kdc("profile", small, "--seconds", "0.2")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"kdc: {small}: is no whole ONNX file")
    assert "Traceback" not in result.stderr


def test_what_goes_wrong_with_a_copy_is_said_of_the_file_given(saved):
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], [info("x", ["batch", "steps", 8])]))

    def measure():
        with entered([path], {"x": (1, 5, 8)}) as (copy,):
            assert copy != path
            raise TargetError(f"{copy.resolve()}: the runtime cannot load it", do="wait")

    with pytest.raises(TargetError) as error:
        measure()
    assert str(error.value) == f"{path}: the runtime cannot load it\n  → wait"


def test_a_shape_lets_a_free_model_be_profiled(kdc, saved):
    relu = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    path = saved(build(relu, [info("x", ["batch", "steps", 8])], [info("y", ["batch", "steps", 4])], [weight]))
    result = kdc("profile", path, "--seconds", "0.2")
    assert result.returncode == 2
    assert "--shape x=1,128,8" in result.stderr
    result = kdc("profile", path, "--seconds", "0.2", "--shape", "x=1,5,8")
    assert result.returncode == 0, result.stderr
    assert f"{5 * 8 * 4 / 1e3:.1f}"[:3] in result.stdout  # 0.16 thousand multiply-accumulates, shown as 0.2
    assert str(os.sep + "kdc-shapes") not in result.stdout
