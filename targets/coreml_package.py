"""What stands in an .mlpackage: its program and its numbers, read from the files as they were written.

It reads the protocol buffers (MIL.proto) and the file of weights (StorageFormat.hpp of coremltools) by itself, so that what
is checked is what a device gets, and not what a converter held in memory.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from kdc.core.errors import TargetError
from targets.runtime import Array, Port

DATA = Path("Data") / "com.apple.CoreML"
"""Where coremltools puts a model inside its package."""
_SENTINEL = 0xDEADBEEF
_BLOB = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the bytes


@dataclass(frozen=True)
class Operation:
    """One operation: its arguments by name, each the name of a value, or constants, or a list of either."""

    kind: str
    arguments: Mapping[str, Any]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Program:
    """The function that runs: operations in their order; constants are operations of the kind `const`."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Named:
    """The name of a value that another operation makes, where an argument is not a constant."""

    name: str


@contextmanager
def quiet() -> Iterator[None]:
    """coremltools' warnings (of newer versions of scikit-learn and torch) and progress bars are not shown."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def read_program(package: Path) -> Program:
    """The program of an .mlpackage.

    Raises: TargetError where it is not one, or holds what kdc does not read (control flow, types narrower than a byte).
    """
    proto = _proto()
    data = package / DATA
    try:
        spec = proto.Model_pb2.Model.FromString((data / "model.mlmodel").read_bytes())
        function = spec.mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
    except Exception as error:  # protobuf's DecodeError, KeyError, OSError
        raise TargetError(f"{package}: is no ML program: {error}") from error
    reader = _Reader(data)
    operations = tuple(reader.operation(one) for one in block.operations)
    made = {port.name: port for one in operations for port in one.outputs}
    described = spec.description
    inputs, outputs = ([_described(one) for one in ends] for ends in (described.input, described.output))
    taken = {one.name: _port(one) for one in function.inputs}
    for found, within in ((inputs, taken), (outputs, made)):
        for port in found:
            if within.get(port.name) != port:
                raise TargetError(f"{package}: says that {port.name!r} is {port}, its program {within.get(port.name)}")
    if list(block.outputs) != [port.name for port in outputs]:
        raise TargetError(f"{package}: its program gives {list(block.outputs)}, not {[port.name for port in outputs]}")
    return Program(tuple(inputs), tuple(outputs), operations)


def constants(program: Program) -> dict[str, Array]:
    """Every constant of numbers, by its name; the integers behind a `constexpr` under the name that it makes."""
    found = {}
    for one in program.operations:
        name = one.outputs[0].name
        values = one.arguments.get("quantized_data", one.arguments.get("data")) if "constexpr" in one.kind else None
        values = one.arguments.get("val") if one.kind == "const" else values
        if isinstance(values, np.ndarray):
            found[name] = values
    return found


def _proto() -> Any:
    with quiet():
        from coremltools import proto

    return proto


class _Reader:
    """Values of a program, those in the file of weights too."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._files: dict[Path, bytes] = {}

    def operation(self, one: Any) -> Operation:
        if one.blocks:
            raise TargetError(f"{self._data}: {one.type} has branches, and kdc reads programs without")
        arguments = {name: self._argument(argument) for name, argument in one.inputs.items()}
        arguments |= {name: self._value(value) for name, value in one.attributes.items() if name != "name"}
        return Operation(one.type, arguments, tuple(_port(output) for output in one.outputs))

    def _argument(self, argument: Any) -> Any:
        found = [
            Named(one.name) if one.WhichOneof("binding") == "name" else self._value(one.value)
            for one in argument.arguments
        ]
        return found[0] if len(found) == 1 else found

    def _value(self, value: Any) -> Any:
        kind, sizes = _tensor_type(value.type)
        shape = [int(size) for size in sizes]
        if value.WhichOneof("value") == "blobFileValue":
            place = value.blobFileValue
            raw = self._blob(place.fileName, place.offset)
            return np.frombuffer(raw, _numpy(kind)).reshape(shape)
        tensor = value.immediateValue.tensor
        held = tensor.WhichOneof("value")
        values: Any = getattr(tensor, held).values if held is not None else ()
        if kind == "STRING":
            return values[0] if not shape else list(values)
        dtype = _numpy(kind)
        return (
            np.frombuffer(values, dtype).reshape(shape) if held == "bytes" else np.array(values, dtype).reshape(shape)
        )

    def _blob(self, name: str, offset: int) -> bytes:
        path = self._data / name.removeprefix("@model_path/")
        if path not in self._files:
            self._files[path] = path.read_bytes()
        held = self._files[path]
        sentinel, _, size, start = _BLOB.unpack_from(held, offset)
        if sentinel != _SENTINEL or start + size > len(held):
            raise TargetError(f"{path}: holds no numbers at {offset}")
        return held[start : start + size]


def _tensor_type(value_type: Any) -> tuple[str, tuple[int | str, ...]]:
    proto = _proto()
    tensor = value_type.tensorType
    sizes = tuple(
        one.constant.size if one.WhichOneof("dimension") == "constant" else f"size_{axis}"
        for axis, one in enumerate(tensor.dimensions)
    )
    return proto.MIL_pb2.DataType.Name(tensor.dataType), sizes


def _numpy(kind: str) -> np.dtype[Any]:
    try:
        return np.dtype(kind.lower())
    except TypeError as error:
        raise TargetError(f"a program has values of {kind}, which kdc does not read") from error


def _port(named: Any) -> Port:
    kind, shape = _tensor_type(named.type)
    return Port(named.name, shape, kind.lower())


def _described(feature: Any) -> Port:
    proto = _proto()
    array = feature.type.multiArrayType
    kinds = proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    return Port(feature.name, tuple(array.shape), kinds.Name(array.dataType).lower())
