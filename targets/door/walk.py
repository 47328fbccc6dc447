"""Going through a graph of protobuf's, and naming its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, NodeProto

SHOWN = 5  # of anything that is listed


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """A node's bodies: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def nodes(given: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """All nodes, those of bodies too."""
    for node in given:
        yield node
        for graph in subgraphs(node):
            yield from nodes(graph.node)


def named(node: NodeProto) -> str:
    """A node for a message."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} that makes {', '.join(node.output)!r}"
