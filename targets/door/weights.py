"""Weights: they lie in the file's own folder, and are as long as their shapes say. Not one of them is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from kdc.core.errors import TargetError

MEMORY = "*/_ORT_MEM_ADDR_/*"  # ONNX Runtime takes it for an address in the process's own memory
DIGITS = 19  # of an offset or a length: more than any file has bytes


def check_weights(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside this one that its weights lie in; all weights are there and as long as they should be."""
    lengths: dict[Path, int] = {}
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            file, end = _external(tensor, path)
            if file not in lengths:
                lengths[file] = _length(file, tensor.name, path)
            if end > lengths[file]:
                raise TargetError(
                    f"{path}: {file.name} is too short: the weight {tensor.name!r} ends at byte {end:,}, and the file at"
                    f" {lengths[file]:,}",
                    do="copy it again: it was cut short",
                )
        else:
            _check_inline(tensor, path)
    return tuple(sorted(lengths))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)
    for function in model.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[AttributeProto]) -> Iterator[TensorProto]:
    """By what is there, and not by the attribute's type: readers differ in which of the two they go by."""
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _external(tensor: TensorProto, path: Path) -> tuple[Path, int]:
    """The file that a weight lies in, and the byte behind its last one."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise TargetError(
            f"{path}: the place of the weight {tensor.name!r} is told twice, and readers differ in which they take",
            do="export the model again",
        )
    location = entries.get("location", "")
    file = _inside(location, tensor.name, path)
    numbers = {key: entries.get(key, "0") for key in ("offset", "length")}
    if not all(value.isascii() and value.isdigit() and len(value) <= DIGITS for value in numbers.values()):
        raise TargetError(
            f"{path}: the place of the weight {tensor.name!r} cannot be read: offset {numbers['offset']!r}, length"
            f" {numbers['length']!r}",
            do="export the model again",
        )
    expected = _bytes(tensor, path)
    length = int(numbers["length"]) if "length" in entries else expected
    if length != expected:
        raise TargetError(
            f"{path}: the weight {tensor.name!r} takes {expected:,} bytes, and {length:,} are named in {location!r}",
            do="export the model again",
        )
    return file, int(numbers["offset"]) + length


def _inside(location: str, name: str, path: Path) -> Path:
    """A location as a path in the file's own folder.

    Raises: TargetError where it leads elsewhere: absolute, by "..", or by a symbolic link. A model that could name any
    file would let whoever wrote it read what the user can.
    """
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    refused = None
    if not location or "\0" in location:
        refused = f"names no file: {location!r}"
    elif location.startswith(MEMORY):
        refused = "is an address in memory, and no file"
    elif PurePosixPath(location).is_absolute() or windows.drive or windows.root:
        refused = f"is an absolute path, {location!r}"
    elif ".." in parts or ".." in windows.parts:
        refused = f"is outside the file's folder: {location!r}"
    elif "\\" in location or not location.isprintable():
        refused = f"is written with characters that systems read differently: {location!r}"
    else:
        at = path.parent
        for part in parts:
            at /= part
            if _is_link(at):
                refused = f"leads through a symbolic link: {location!r}"
                break
        if refused is None and parts and _same(at, path):
            refused = f"is the .onnx file itself: {location!r}"
    if refused is not None:
        raise TargetError(
            f"{path}: the place of the weight {name!r} {refused}; it was not read",
            do="put the weights' file beside the .onnx file, as a plain file, and name it there",
        )
    return path.parent / Path(*parts)


def _is_link(path: Path) -> bool:
    """Whether a symbolic link stands there; a name that is too long for any file is none."""
    try:
        return path.is_symlink()
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _length(file: Path, name: str, path: Path) -> int:
    try:
        found = file.stat()
    except OSError as error:
        raise TargetError(
            f"{path}: the weight {name!r} lies in {file.name}, which is not there",
            do=f"copy {file.name} into {file.parent or Path()}",
        ) from error
    if not file.is_file():
        raise TargetError(f"{path}: the weight {name!r} lies in {file.name}, which is no file", do="copy it again")
    return found.st_size


def _bytes(tensor: TensorProto, path: Path) -> int:
    """How many bytes a weight takes, by its shape and type; types below 8 bits are packed."""
    if any(size < 0 for size in tensor.dims):
        raise TargetError(f"{path}: the weight {tensor.name!r} has the shape {list(tensor.dims)}", do="export it again")
    elements = math.prod(tensor.dims)
    bits = _bits(tensor.data_type)
    if bits is None:
        raise TargetError(
            f"{path}: the weight {tensor.name!r} has the data type {tensor.data_type}, which has no size in ONNX",
            do="export the model again",
        )
    return int(-(-elements * bits // 8))


def _bits(data_type: int) -> int | None:
    try:
        name = TensorProto.DataType.Name(data_type)
        if name in ("UNDEFINED", "STRING"):
            return None
        if name.endswith("INT2"):
            return 2
        if name.endswith("INT4") or name == "FLOAT4E2M1":
            return 4
        return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8
    except (KeyError, ValueError):
        return None


def _check_inline(tensor: TensorProto, path: Path) -> None:
    if tensor.data_type == TensorProto.STRING:
        return
    expected = _bytes(tensor, path)
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        found, unit = len(tensor.raw_data), "bytes"
    else:
        expected, found, unit = _stored(tensor, elements)
    if found != expected:
        raise TargetError(
            f"{path}: the weight {tensor.name!r} {list(tensor.dims)} takes {expected:,} {unit}, and the file holds"
            f" {found:,}",
            do="copy or export it again: it may be damaged",
        )


def _stored(tensor: TensorProto, elements: int) -> tuple[int, int, str]:
    """Of a weight that is stored as numbers, not as bytes: how many there should be, how many there are."""
    try:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    except KeyError:
        return elements, 0, "numbers"
    each = 2.0 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1.0
    if field == "int32_data" and (bits := _bits(tensor.data_type)) in (2, 4):
        each = bits / 8  # packed, a byte in each number
    return math.ceil(elements * each), len(getattr(tensor, field)), "numbers"
