"""The rule of operators that work index by index, and broadcasting, which other rules share with it."""

from __future__ import annotations

from torch.fx import Node

from passes.prune.flow import Flow, sizes
from passes.prune.labels import Array, Dims


def broadcast(
    flow: Flow, node: Node, operands: list[tuple[Dims, tuple[int, ...]]], out: tuple[int, ...]
) -> tuple[Array | None, ...]:
    """Dimensions matched from the right, as torch broadcasts them: equal sizes keep the same indices."""
    result: list[Array | None] = []
    for place, size in enumerate(out):
        facing = [
            (dims[place - len(out)], shape[place - len(out)]) for dims, shape in operands if _faces(shape, out, place)
        ]
        same = [labels for labels, own in facing if own == size]
        for labels in (labels for labels, own in facing if own != size):
            flow.freeze(labels, f"{node.name} stretches it over many channels")
        result.append(same[0] if same else None)
        for labels in same[1:]:
            result[-1] = flow.labels.match(result[-1], labels, f"{node.name} joins it with a fixed width")
    return tuple(result)


def _faces(shape: tuple[int, ...], out: tuple[int, ...], place: int) -> bool:
    return len(shape) >= len(out) - place


def pointwise(flow: Flow, node: Node) -> Dims:
    """Every index of the output reads the same index of each operand."""
    operands = [(flow.dims(source), sizes(source)) for source in node.all_input_nodes]
    return broadcast(flow, node, operands, sizes(node))
