"""Finding the groups that cannot really be pruned, by trying."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from passes.prune import values
from passes.prune.channels import ChannelGraph, Mask
from passes.prune.labels import Array
from passes.prune.surgery import check, remove


def probe(model: nn.Module, graph: ChannelGraph, inputs: Sequence[TensorSpec]) -> ChannelGraph:
    """Freeze the groups that cannot really be pruned, by trying: one unit of each is removed.

    A size that forward() spells out as a number looks in the trace like one that it computed from the channels. Where
    the pruned model fails, or its own trace has another shape anywhere than the labels foretell, or another number (an
    attention's scale), or other values (`values.py`), the group is frozen. All groups are tried together first, and
    alone only if that fails.
    """
    candidates = [place for place, group in enumerate(graph.groups) if group.prunable]
    if _fault(model, graph, inputs, candidates) is None:
        return graph
    reasons: dict[int, str] = {}
    for place in candidates:
        fault = _fault(model, graph, inputs, [place], traced=False)
        if fault is not None:
            reasons[place] = fault
    if _fault(model, graph, inputs, [place for place in candidates if place not in reasons]) is not None:
        for place in candidates:
            fault = None if place in reasons else _fault(model, graph, inputs, [place])
            if fault is not None:
                reasons[place] = fault
    left = [place for place in candidates if place not in reasons]
    fault = _fault(model, graph, inputs, left)
    return graph.with_reasons({**reasons, **(dict.fromkeys(left, fault) if fault else {})})


def verify(model: nn.Module, pruned: nn.Module, graph: ChannelGraph, kept: Mask, inputs: Sequence[TensorSpec]) -> None:
    """Raises: ModelError where the pruned model does not run, or does not compute what the labels foretell."""
    check(model, pruned, inputs)
    fault = _difference(graph, ChannelGraph.of(pruned, inputs), kept, inputs)
    if fault is not None:
        raise ModelError(
            f"the pruned model does not compute what the model computes without these channels: {fault}",
            do="keep every channel of the layers whose size forward() spells out as a number",
        )


def _fault(
    model: nn.Module, graph: ChannelGraph, inputs: Sequence[TensorSpec], places: Sequence[int], *, traced: bool = True
) -> str | None:
    """What goes wrong when one unit of each of these groups is removed."""
    kept = graph.without([graph.groups[place].units[0] for place in places])
    try:
        pruned = remove(model, graph, kept)
        check(model, pruned, inputs)
        fault = _difference(graph, ChannelGraph.of(pruned, inputs), kept, inputs) if traced else None
    except ModelError as error:
        fault = str(error).splitlines()[0]
    return None if fault is None else f"it cannot change: {fault}"


def _difference(graph: ChannelGraph, after: ChannelGraph, kept: Mask, inputs: Sequence[TensorSpec]) -> str | None:
    """The first operator of a pruned model's trace that is not as the labels foretell."""
    if [seen.operator for seen in graph.seen] != [seen.operator for seen in after.seen]:
        return "the model takes another way without it"
    for before, now in zip(graph.seen, after.seen, strict=True):
        foretold = [tuple(_extent(d, graph, kept) for d in dims) for dims in before.dims]
        if foretold != [tuple(d if isinstance(d, int) else len(d) for d in dims) for dims in now.dims]:
            return f"{before.operator} does not follow it"
        if before.numbers != now.numbers:
            return f"{before.operator} computes with its width"
    return values.difference(graph, after, kept, inputs)


def _extent(dim: Array | int, graph: ChannelGraph, kept: Mask) -> int:
    return dim if isinstance(dim, int) else int(graph.kept_of(dim, kept).sum())
