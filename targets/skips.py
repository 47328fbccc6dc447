"""Whether a file skips work: the time of such a file depends on its input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir
from onnx_ir.passes.common import InlinePass

from kdc.core.spec import DeviceFile
from targets.cascade import is_cascade
from targets.parts import described_by
from targets.runtime import Runtime


def skips(paths: Sequence[Path]) -> bool:
    """Whether a file's work depends on its input's values: it is a cascade, or branches on what it computes.

    True for an `If` or a `Loop`, in any of the file's graphs, whose condition or number of rounds follows from an
    input's values. One that follows from constants or from shapes alone takes the same way for every input.

    Args: paths: what `Runtime.files` gives.
    """
    return is_cascade(paths[0]) or any(_branches(onnx_ir.load(path)) for path in onnx_files(paths))


def which_skip(files: Sequence[DeviceFile], runtime: Runtime) -> tuple[bool, ...]:
    """Whether each file's work depends on its input; False where its graph is unknown."""
    described = [described_by(file, runtime) for file in files]
    return tuple(bool(paths) and skips(paths) for paths in described)


def onnx_files(paths: Sequence[Path]) -> list[Path]:
    """The graphs among a file's parts: the others are weights."""
    return [path for path in paths if path.suffix == ".onnx"] if is_cascade(paths[0]) else [paths[0]]


def _branches(model: onnx_ir.Model) -> bool:
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
    # A body's number of the round and its condition follow from what decides about the Loop, which is looked at itself.
    counters = [
        value for node in nodes if node.op_type == "Loop" for value in node.attributes["body"].as_graph().inputs[:2]
    ]
    deciding = [value for node in nodes if node.op_type in ("If", "Loop") for value in _deciding(node)]
    return _follow_from_inputs(deciding, set(counters))


def _deciding(node: onnx_ir.Node) -> list[onnx_ir.Value | None]:
    """The condition of an If; a Loop's number of rounds, its first condition, and the one that its body gives."""
    if node.op_type == "If":
        return [node.inputs[0]]
    return [*node.inputs[:2], node.attributes["body"].as_graph().outputs[0]]


def _follow_from_inputs(values: Sequence[onnx_ir.Value | None], passed_over: set[onnx_ir.Value]) -> bool:
    """Whether any of the values is computed from an input's values."""
    seen, waiting = set(passed_over), list(values)
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if value.is_graph_input() and not value.is_initializer():
                return True
        elif node.op_type not in ("Shape", "Size"):
            waiting.extend(node.inputs)
            for attribute in node.attributes.values():
                if attribute.type == onnx_ir.AttributeType.GRAPH:
                    waiting.extend(attribute.as_graph().outputs)
    return False
