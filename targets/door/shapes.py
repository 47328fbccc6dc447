"""Free sizes fixed by the user: `--shape input=1,3,224,224`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, ValueInfoProto

from kdc.core.errors import TargetError
from targets.door.examine import Examined
from targets.door.walk import subgraphs

Shape = tuple[int, ...]
LARGEST = 2**40  # elements of one input; more is a slip of the finger


def parse_shapes(given: Sequence[str]) -> dict[str, Shape]:
    """Shapes by the input's name, from texts such as `x=1,3,224,224`; a name may hold a "=" itself.

    Raises: TargetError where a text is no shape, or an input is named twice.
    """
    shapes: dict[str, Shape] = {}
    for text in given:
        name, equals, sizes = text.rpartition("=")
        parts = [part.strip() for part in sizes.split(",")]
        if not equals or not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise TargetError(
                f"--shape {text}: is no name with sizes, each 1 or more", do="write it as `--shape x=1,3,224,224`"
            )
        if name in shapes:
            raise TargetError(f"--shape {text}: the input {name!r} has a shape already", do="name each input once")
        shapes[name] = tuple(map(int, parts))
        if math.prod(shapes[name]) > LARGEST:
            raise TargetError(f"--shape {text}: is {math.prod(shapes[name]):,} numbers", do="give a smaller shape")
    return shapes


def fix_shapes(examined: Examined, path: Path, shapes: Mapping[str, Shape], folder: Path) -> Path:
    """A copy of a file, in `folder`, whose named inputs have these shapes.

    A free size with a name is fixed wherever the name stands: in other inputs and in outputs too. Weights beside the
    file are copied too.

    Returns: the copy; the file itself where no shape is given.

    Raises: TargetError where there is no such input, or a size contradicts the file's or another shape's.
    """
    if not shapes:
        return path
    sizes = _named_sizes(examined, path, shapes)
    model = ModelProto()
    model.CopyFrom(examined.model)
    for value in model.graph.input:
        if value.name in shapes:
            value.type.tensor_type.shape.CopyFrom(_proto(shapes[value.name]))
    for value in _values(model.graph):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_param in sizes and dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    copy = folder / path.name
    onnx.save(model, copy)
    for file in examined.weights:
        beside = folder / file.relative_to(path.parent)
        beside.parent.mkdir(parents=True, exist_ok=True)
        if not beside.exists():
            shutil.copyfile(file, beside)  # no link: onnx takes a file with two names for an attack
    return copy


def _named_sizes(examined: Examined, path: Path, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """What the shapes say of free sizes that have a name."""
    ports = {port.name: port for port in examined.inputs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in ports:
            raise TargetError(f"{path}: there is no input {name!r}", do=f"its inputs: {', '.join(ports) or 'none'}")
        own = ports[name].shape
        if own == ("...",):
            continue
        fits = len(own) == len(shape) and all(
            size == given for size, given in zip(own, shape, strict=True) if isinstance(size, int)
        )
        if not fits:
            raise TargetError(
                f"{path}: input {name!r} is [{', '.join(map(str, own))}], and --shape says {list(shape)}",
                do="give free sizes any value, and fixed ones their own",
            )
        for size, given in zip(own, shape, strict=True):
            if isinstance(size, str) and size != "?" and sizes.setdefault(size, given) != given:
                raise TargetError(
                    f"{path}: the free size {size!r} would be {sizes[size]} and {given} at once",
                    do="give every input that it stands in the same size",
                )
    return sizes


def _proto(shape: Shape) -> onnx.TensorShapeProto:
    return onnx.TensorShapeProto(dim=[onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape])


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info
    for node in graph.node:
        for body in subgraphs(node):
            yield from _values(body)
