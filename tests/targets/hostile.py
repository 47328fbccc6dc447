"""ONNX files that name what is not theirs: in each place that a weight can have, in each way that leads astray."""

import os
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
NUMBERS = np.arange(4, dtype=np.float32)
LOCATIONS = {
    "one folder up": "../secret.bin",
    "up by a detour": "sub/../../secret.bin",
    "up by many slashes": "..//./secret.bin",
    "absolute": "ABSOLUTE",
    "through a link": "link.bin",
    "through a linked folder": "linked/secret.bin",
    "a dangling link": "dangling.bin",
    "up as Windows writes it": "..\\secret.bin",
    "a drive": "C:\\secret.bin",
    "a backslash": "sub\\weights.bin",
    "a NUL": "weights.bin\0.txt",
    "a line break": "weights\n.bin",
    "no name": "",
    "the folder": ".",
    "a folder": "sub",
    "a pipe": "pipe",
    "an address in memory": "*/_ORT_MEM_ADDR_/*",
    "the file itself": "m.onnx",
    "a file that is missing": "missing.bin",
    "a name too long for any file": "w" * 5000,
}
PLACES = {
    "beyond the end": {"offset": "8"},
    "far beyond the end": {"offset": str(10**18)},
    "with a number too long": {"offset": "9" * 5000},
    "before the beginning": {"offset": "-8"},
    "of a negative length": {"length": "-1"},
    "of another length": {"length": "8"},
    "of no number": {"offset": "one"},
}


def external(location: str, name: str = "w", **place: str) -> TensorProto:
    """Four float32 that lie elsewhere."""
    tensor = TensorProto(name=name, dims=[4], data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def values(*names):
    return [helper.make_tensor_value_info(name, FLOAT, [4]) for name in names]


def model(nodes, weights=(), functions=(), sparse=()) -> ModelProto:
    graph = helper.make_graph(nodes, "g", values("x"), values("y"), weights, sparse_initializer=list(sparse))
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))


def add(*inputs, output="y"):
    return helper.make_node("Add", list(inputs), [output], f"add_{output}")


def initializer(weight: TensorProto) -> ModelProto:
    return model([add("x", "w")], [weight])


def constant(weight: TensorProto) -> ModelProto:
    return model([helper.make_node("Constant", [], ["w"], value=weight), add("x", "w")])


def in_a_branch(weight: TensorProto) -> ModelProto:
    branch = helper.make_graph([add("x", "w", output="b")], "branch", [], values("b"), [weight])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["c"])], "other", [], values("c"))
    which = numpy_helper.from_array(np.array(True), "which")
    return model([helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=other)], [which])


def in_a_function(weight: TensorProto) -> ModelProto:
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Add", ["x", "w"], ["y"])]
    function = helper.make_function("own", "Shift", ["x"], ["y"], nodes, [helper.make_opsetid("", 21)])
    return model([helper.make_node("Shift", ["x"], ["y"], domain="own")], functions=[function])


def a_functions_default(weight: TensorProto) -> ModelProto:
    made = in_a_function(numpy_helper.from_array(NUMBERS, "w"))
    made.functions[0].attribute_proto.append(helper.make_attribute("table", weight))
    return made


def _sparse(weight: TensorProto):
    indices = numpy_helper.from_array(np.arange(4), "indices")
    return helper.make_sparse_tensor(weight, indices, [4])


def sparse_initializer(weight: TensorProto) -> ModelProto:
    return model([add("x", "w")], sparse=[_sparse(weight)])


def sparse_constant(weight: TensorProto) -> ModelProto:
    return model([helper.make_node("Constant", [], ["w"], sparse_value=_sparse(weight)), add("x", "w")])


def attribute_of_another_type(weight: TensorProto) -> ModelProto:
    made = constant(weight)
    made.graph.node[0].attribute[0].type = 0  # some readers go by what is there
    return made


HOLDERS = {
    function.__name__: function
    for function in (
        initializer,
        constant,
        in_a_branch,
        in_a_function,
        a_functions_default,
        sparse_initializer,
        sparse_constant,
        attribute_of_another_type,
    )
}


def folder_with(tmp_path: Path) -> Path:
    """A model's folder with all that locations lead through, and a secret outside."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    for path in (secret, folder / "weights.bin", folder / "sub" / "weights.bin", folder / "sub\\weights.bin"):
        path.write_bytes(NUMBERS.tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "dangling.bin").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    return folder


def saved(folder: Path, made: ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def hostile(tmp_path: Path, kind: str) -> Path:
    """A file whose only weight's location is of this kind."""
    folder = folder_with(tmp_path)
    location = LOCATIONS[kind]
    return saved(folder, initializer(external(str(tmp_path / "secret.bin") if location == "ABSOLUTE" else location)))


def broken(tmp_path: Path, kind: str) -> Path:
    """A file that is no whole model."""
    path = saved(folder_with(tmp_path), initializer(numpy_helper.from_array(NUMBERS, "w")))
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(path.read_bytes()[:-9])
        case "cyclic":
            nodes = [add("x", "b", output="a"), helper.make_node("Relu", ["a"], ["b"], "relu"), add("a", "b")]
            saved(path.parent, model(nodes))
        case "a pipe":
            path.unlink()
            os.mkfifo(path)
        case "a folder":
            path.unlink()
            path.mkdir()
    return path


BROKEN = ("empty", "truncated", "cyclic", "a pipe", "a folder")
