"""How much memory a graph's values take at once, on paper: liveness over the order in which its nodes stand.

The model. Nodes run one after the other, in the file's order. A value takes its elements times their size from the node
that makes it to the last node that reads it; what the caller gives and what he gets stay his: inputs are there from the
start to the end, outputs from their node to the end. While a node runs its inputs and outputs are all there. Weights are
counted apart, constants with them.

No value takes another's place (no in-place work, a Reshape is a copy) and no nodes are fused, so that a runtime which
plans its memory well takes less; it takes more where its kernels need workspace or where it holds more than it must.
Of an If the dearer branch counts, of a Loop or Scan one round of its body, on top of what is alive around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir

from kdc.core.errors import ModelError
from kdc.numerics.cost import with_shapes


class Peak(NamedTuple):
    """The most bytes that values take at once, and the node (operator, name) at which they do; None without nodes."""

    bytes: int
    at: tuple[str, str] | None


def activation_peak(model: onnx_ir.Model) -> Peak:
    """The peak of a graph's values, every free size being 1. The model is left as it was.

    Raises: ModelError where a shape cannot be inferred.
    """
    return _peak(with_shapes(model).graph)


def value_bytes(value: onnx_ir.Value) -> int:
    """What a value takes: elements by bits, rounded up to bytes.

    Raises: ModelError where its shape or type is not known.
    """
    if value.shape is None or not all(isinstance(size, int) for size in value.shape) or value.dtype is None:
        maker = value.producer()
        where = "" if maker is None else f", which {maker.op_type} '{maker.name}' makes"
        raise ModelError(
            f"the shape or type of '{value.name}'{where} cannot be inferred, so that its memory cannot be counted",
            do="export the model with fixed sizes, but for the batch",
        )
    if value.dtype == onnx_ir.DataType.STRING:
        return 0  # of a length that the graph does not tell
    return math.ceil(math.prod(size for size in value.shape if isinstance(size, int)) * value.dtype.itemsize)


def is_constant(value: onnx_ir.Value) -> bool:
    """Whether a value is there before the run: a weight, or what a Constant node holds."""
    maker = value.producer()
    return value.is_initializer() or (maker is not None and maker.op_type == "Constant")


def _peak(graph: onnx_ir.Graph) -> Peak:
    nodes = [node for node in graph if node.op_type != "Constant"]
    last: dict[onnx_ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in _read(node):
            last[value] = index
    kept = set(graph.outputs)
    alive = sum(value_bytes(value) for value in graph.inputs if not value.is_initializer())
    largest = Peak(alive, None)
    for index, node in enumerate(nodes):
        made = [value for value in node.outputs if value.name]
        alive += sum(value_bytes(value) for value in made)
        body = max((_peak(one).bytes for one in _bodies(node)), default=0)
        if alive + body > largest.bytes or largest.at is None:
            largest = Peak(max(alive + body, largest.bytes), (node.op_type, node.name or ""))
        own = {value for value in _read(node) if value.producer() is not None and value.graph is graph}
        gone = {value for value in own if last[value] == index} | {value for value in made if value not in last}
        alive -= sum(value_bytes(value) for value in gone if value not in kept and not is_constant(value))
    return largest


def _bodies(node: onnx_ir.Node) -> Iterable[onnx_ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _read(node: onnx_ir.Node) -> set[onnx_ir.Value]:
    """What a node reads, and what its bodies do."""
    found = {value for value in node.inputs if value is not None}
    for graph in _bodies(node):
        found |= set(graph.outputs)
        for inner in graph:
            found |= _read(inner)
    return found
