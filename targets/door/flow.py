"""Where values come from: each is made once, and not of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import GraphProto

from kdc.core.errors import TargetError
from targets.door.walk import SHOWN, named, subgraphs


def check_flow(graph: GraphProto, outside: frozenset[str], path: Path) -> None:
    """Every value that is read is made, once, and not of itself. `outside`: what a body sees of the graphs around it."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers or name in given:
                raise TargetError(
                    f"{path}: {name!r} is made twice, the second time by {named(node)}", do="export the model again"
                )
            makers[name] = index
    known = given | makers.keys() | outside
    reads: list[list[str]] = []
    for node in graph.node:
        names = [*filter(None, node.input)]
        for body in subgraphs(node):
            check_flow(body, frozenset(known), path)
            names += _read_from_outside(body)
        for name in names:
            if name not in known:
                raise TargetError(
                    f"{path}: {named(node)} reads {name!r}, which is no input and which nothing makes",
                    do="export the model again: a part of the graph is missing",
                )
        reads.append([name for name in names if name in makers])
    for value in graph.output:
        if value.name not in known:
            raise TargetError(f"{path}: the output {value.name!r} is made by nothing", do="export the model again")
    circle = _circle(reads, makers)
    if circle:
        shown = " → ".join(named(graph.node[index]) for index in circle[:SHOWN])
        raise TargetError(
            f"{path}: the graph runs in a circle: {shown}{' → ...' if len(circle) > SHOWN else ''}",
            do="export the model again: a loop has to be written as the operator Loop or Scan",
        )
    for index, names in enumerate(reads):
        late = next((name for name in names if makers[name] > index), None)
        if late is not None:
            raise TargetError(
                f"{path}: the nodes stand in no order to run in: {named(graph.node[index])} reads {late!r} before"
                f" {named(graph.node[makers[late]])} makes it",
                do="sort them, as onnx_ir's `model.graph.sort()` does, and save the file again",
            )


def _read_from_outside(graph: GraphProto) -> list[str]:
    """What a body reads of the graphs around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in node.input if name]
    read += [name for node in graph.node for body in subgraphs(node) for name in _read_from_outside(body)]
    read += [value.name for value in graph.output]
    return [name for name in read if name not in own]


def _circle(reads: Sequence[Sequence[str]], makers: Mapping[str, int]) -> list[int]:
    """The indices of the nodes of a circle, its first one again at the end; empty where there is none.

    Nodes that read nothing unmade are taken away until none is left (Kahn 1962); of those that stay, each reads of
    another that stays, so that going on from one to the next must come back to one that was seen.
    """
    readers: list[list[int]] = [[] for _ in reads]
    waiting = [len(names) for names in reads]
    for index, names in enumerate(reads):
        for name in names:
            readers[makers[name]].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    left = [index for index, count in enumerate(waiting) if count > 0]
    if not left:
        return []
    way: list[int] = []
    at = left[0]
    while at not in way:
        way.append(at)
        at = next(makers[name] for name in reads[at] if waiting[makers[name]] > 0)
    circle = way[way.index(at) :]
    return [at, *reversed(circle)]  # the way goes from reader to maker, values flow the other way
