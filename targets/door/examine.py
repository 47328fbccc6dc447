"""What is looked at before an ONNX file is measured: a bad one is turned away here, with the reason and the mend.

The graph is read, the weights beside it are not: of them only places and sizes are looked at. A file that passes can
still be refused by a runtime; a file that is turned away could not have run, or asks to read what is not its own.

In this order: the file itself; its operator sets; its inputs and outputs; where its values come from (missing, made
twice, in a circle); its weights, where they lie and how long they are; its operators.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from kdc.core.errors import TargetError
from targets.door.flow import check_flow
from targets.door.operators import check_operators, standard
from targets.door.walk import SHOWN, nodes
from targets.door.weights import check_weights
from targets.runtime import Port

# The domains whose operators ONNX Runtime brings with it, beyond those of the standard.
RUNTIME_DOMAINS = frozenset(
    {"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"}
)
PROTOBUF_LIMIT = 2**31 - 1  # bytes of one protobuf message
NUMERIC = "fiub"  # numpy's kinds that random numbers can be drawn for


class Examined(NamedTuple):
    """A file that may be measured: the graph without the weights beside it, and what it takes.

    `weights` are the files beside it that its weights lie in.
    """

    model: ModelProto
    inputs: tuple[Port, ...]
    weights: tuple[Path, ...]


def examine(path: Path, *, domains: Collection[str] = RUNTIME_DOMAINS) -> Examined:
    """Read an ONNX file's graph and turn it away where no runtime could run it.

    Args: domains: of operators that the runtime knows, beyond those of the ONNX standard.

    Raises: TargetError with what is wrong, where, and what to do.
    """
    model = read_model(path)
    versions = _versions(model, path)
    inputs = _inputs(model.graph, path)
    if not model.graph.output:
        raise TargetError(f"{path}: the graph has no output", do="export the model again: it must give something")
    check_flow(model.graph, frozenset(), path)
    weights = check_weights(model, path)  # before the checker of operators, which looks for them in its own way
    functions = {(function.domain, function.name): function for function in model.functions}
    check_operators(list(nodes(model.graph.node)), versions, functions.keys(), domains, path)
    for function in model.functions:
        own = {standard(entry.domain): entry.version for entry in function.opset_import}
        check_operators(list(nodes(function.node)), own, functions.keys(), domains, path)
    return Examined(model, inputs, weights)


def unknown_sizes(inputs: Iterable[Port]) -> list[Port]:
    """The inputs that have a free size other than the first, which is the batch: something has to tell it."""
    return [port for port in inputs if any(isinstance(size, str) for size in port.shape[1:]) or port.shape == ("...",)]


def ask_for_shapes(path: Path, inputs: Sequence[Port]) -> None:
    """Raises: TargetError where random inputs cannot be made, for a size is free; it says what to type."""
    found = unknown_sizes(inputs)
    if not found:
        return
    said = "; ".join(
        f"input {port.name!r} has no shape"
        if port.shape == ("...",)
        else f"input {port.name!r} is [{', '.join(map(str, port.shape))}]"
        for port in found[:SHOWN]
    )
    asked = " ".join(f"--shape {port.name}={_example(port)}" for port in found[:SHOWN])
    raise TargetError(f"{path}: {said}: sizes are free", do=f"fix them: `{asked}`, or give real inputs with --samples")


def _example(port: Port) -> str:
    if port.shape == ("...",):
        return "1,3,224,224"
    sizes = {2: (1, 128), 3: (1, 128, 128), 4: (1, 3, 224, 224)}.get(len(port.shape), (1,) * len(port.shape))
    return ",".join(str(own if isinstance(own, int) else size) for own, size in zip(port.shape, sizes, strict=True))


def read_model(path: Path) -> ModelProto:
    """An ONNX file's graph, without the weights beside it.

    Raises: TargetError where it is no whole ONNX file.
    """
    if not path.exists():
        raise TargetError(f"{path}: there is no such file", do="check the path")
    if not path.is_file():
        raise TargetError(f"{path}: is no file", do="name the .onnx file itself")
    size = path.stat().st_size
    if size == 0:
        raise TargetError(f"{path}: the file is empty", do="copy or export it again")
    if size > PROTOBUF_LIMIT:
        raise TargetError(
            f"{path}: has {size / 1e9:.1f} GB, and an ONNX file can have 2",
            do="save it with its weights beside it (onnx.save(..., save_as_external_data=True))",
        )
    whole = "copy or export it again: it may be cut short"
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise TargetError(
            f"{path}: is no whole ONNX file: {size:,} bytes that cannot be read as one", do=whole
        ) from error
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror or error}", do="check its permissions") from error
    broken = _broken_text(model)
    if broken is not None:
        raise TargetError(f"{path}: is damaged: the text {broken!r} in it is not UTF-8", do=whole)
    if not model.HasField("graph"):
        raise TargetError(f"{path}: is no whole ONNX file: there is no graph in it", do=whole)
    if not model.opset_import:
        raise TargetError(f"{path}: is no whole ONNX file: it names no operator set", do=whole)
    return model


def _broken_text(message: Message) -> bytes | None:
    """A text that cannot be one: protobuf gives it as bytes, which no reader of names expects."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for one in [value] if isinstance(value, (str, bytes, Message)) else value:
            found = one if isinstance(one, bytes) else _broken_text(one) if isinstance(one, Message) else None
            if found is not None:
                return found
    return None


def _versions(model: ModelProto, path: Path) -> dict[str, int]:
    """Domain to opset."""
    if model.ir_version < 1 or model.ir_version > onnx.IR_VERSION:
        raise TargetError(
            f"{path}: is of ONNX IR version {model.ir_version}, and the installed onnx knows 1 to {onnx.IR_VERSION}",
            do="update onnx, or export the model for an older version",
        )
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = standard(entry.domain)
        if versions.get(domain, entry.version) != entry.version:
            raise TargetError(
                f"{path}: names two versions of the operator set {domain or 'ai.onnx'!r}", do="export it again"
            )
        versions[domain] = entry.version
    known = onnx.defs.onnx_opset_version()
    if not 1 <= versions.get("", 1) <= known:
        raise TargetError(
            f"{path}: is of opset {versions['']}, and the installed onnx knows 1 to {known}",
            do="update onnx, or export the model for an older opset",
        )
    return versions


def _inputs(graph: GraphProto, path: Path) -> tuple[Port, ...]:
    """What must be given at a run: an initializer that stands among the inputs too has a value already."""
    filled = {tensor.name for tensor in graph.initializer}
    return tuple(_port(value, path) for value in graph.input if value.name not in filled)


def _port(value: ValueInfoProto, path: Path) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = "no type" if kind is None else f"a {kind.removesuffix('_type')}"
        raise TargetError(
            f"{path}: input {value.name!r} is {found}, and only tensors can be given",
            do="export the model with tensors as its inputs",
        )
    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    except KeyError as error:
        raise TargetError(
            f"{path}: input {value.name!r} has the data type {tensor.elem_type}, which ONNX does not know",
            do="export the model again",
        ) from error
    if dtype.kind not in NUMERIC or not hasattr(np, dtype.name.removesuffix("_")):
        named = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise TargetError(
            f"{path}: input {value.name!r} takes {named}, and kdc gives numbers that numpy knows",
            do="export the model with float16, float32 or integer inputs",
        )
    if not tensor.HasField("shape"):
        return Port(value.name, ("...",), dtype.name)
    return Port(value.name, tuple(_size(dim, value.name, path) for dim in tensor.shape.dim), dtype.name)


def _size(dim: onnx.TensorShapeProto.Dimension, name: str, path: Path) -> int | str:
    """A size, or the name of a free one; 0 is how some exporters write that they do not know."""
    if dim.WhichOneof("value") != "dim_value" or dim.dim_value == 0:
        return dim.dim_param or "?"
    if dim.dim_value < 0:
        raise TargetError(f"{path}: input {name!r} has the size {dim.dim_value}", do="export the model again")
    return int(dim.dim_value)
