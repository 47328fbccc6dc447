"""What a built file takes and gives, kept in a JSON beside it for runtimes whose own format does not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kdc.core.errors import TargetError
from targets.runtime import Port, must_exist

if TYPE_CHECKING:
    import onnx_ir  # a measuring process reads ports, and loads nothing that it does not need

SUFFIX = ".ports.json"


def ports_path(path: Path) -> Path:
    """Where the ports of a built file lie."""
    return path.with_name(path.stem + SUFFIX)


def ports_of(model: onnx_ir.Model, path: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of an ONNX model. path: for the message.

    Raises: TargetError where one has no shape or no type.
    """
    graph = model.graph
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    return tuple(_port(value, path) for value in inputs), tuple(_port(value, path) for value in graph.outputs)


def _port(value: onnx_ir.Value, path: Path) -> Port:
    if value.shape is None or value.dtype is None:
        raise TargetError(f"{path}: {value.name!r} has no shape or no type", do="export the model with shapes")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return Port(value.name or "", shape, value.dtype.numpy().name)


def write_ports(model: onnx_ir.Model, onnx_path: Path, path: Path) -> None:
    """Keep the ports of an ONNX model beside the file that was built from it."""
    inputs, outputs = ports_of(model, onnx_path)
    ports_path(path).write_text(json.dumps({"inputs": inputs, "outputs": outputs}, indent=1) + "\n")


def read_ports(path: Path) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of a built file.

    Raises: TargetError where they do not lie beside it, or cannot be read.
    """
    beside = ports_path(path)
    must_exist(path)
    if not beside.is_file():
        raise TargetError(
            f"{path}: {beside.name} is not beside it, and its own format does not tell what it takes",
            do="build it by kdc, from the ONNX file",
        )
    try:
        stored = json.loads(beside.read_text())
        inputs, outputs = (
            tuple(Port(name, tuple(shape), dtype) for name, shape, dtype in stored[end])
            for end in ("inputs", "outputs")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{beside}: is not what kdc wrote: {error}", do="build the file again") from error
    return inputs, outputs
