"""Between a decision, which names layers and channels and may be edited by hand, and the units of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdc.core.errors import ModelError
from passes.prune.channels import ChannelGraph, Mask


def kept_channels(graph: ChannelGraph, kept: Mask) -> dict[str, tuple[int, ...]]:
    """The channels that stay in every layer that loses some."""
    stay = {layer: graph.kept_of(graph.axes[axis], kept) for layer, axis in graph.layers.items()}
    return {layer: tuple(np.flatnonzero(own).tolist()) for layer, own in stay.items() if not own.all()}


def kept_units(graph: ChannelGraph, layers: Mapping[str, tuple[int, ...]]) -> Mask:
    """The mask that keeps exactly these channels.

    Raises: ModelError where a layer is unknown, a channel does not exist, stands twice or may not go, a layer would
        keep none, or layers that share a unit do not agree.
    """
    wanted = {layer: _stay(graph, layer, layers.get(layer)) for layer in graph.layers}
    unknown = sorted(set(layers) - set(graph.layers))
    if unknown:
        prunable = dict.fromkeys(layer for group in graph.groups if group.prunable for layer in group.layers)
        raise ModelError(
            f"the pruning decision names {', '.join(map(repr, unknown))}, which the model does not have",
            do=f"its prunable layers are {', '.join(prunable)}",
        )
    kept = graph.without([])
    culprit: dict[int, tuple[str, int]] = {}
    for layer, stay in wanted.items():
        for channel in np.flatnonzero(~stay).tolist():
            unit = int(graph.axes[graph.layers[layer]][channel])
            kept[unit] = False
            culprit.setdefault(unit, (layer, channel))
    reasons = {unit: group.reason for group in graph.groups for unit in group.units}
    for layer, stay in wanted.items():
        owners = graph.axes[graph.layers[layer]]
        for channel in np.flatnonzero(~graph.kept_of(owners, kept)).tolist():
            unit = int(owners[channel])
            if reasons[unit] is not None:
                raise ModelError(
                    f"the pruning decision removes channel {channel} of {layer!r}, which must stay: {reasons[unit]}",
                    do=f"keep every channel of {layer!r}, or leave it out of the decision",
                )
            if stay[channel]:
                other, lost = culprit[unit]
                raise ModelError(
                    f"the pruning decision removes channel {lost} of {other!r}, and keeps channel {channel} of "
                    f"{layer!r}; they are one channel to the model",
                    do="keep both, or remove both",
                )
    return kept


def _stay(graph: ChannelGraph, layer: str, channels: tuple[int, ...] | None) -> Mask:
    """[channels of the layer]: which of them the decision keeps; all, where it does not name the layer."""
    size = len(graph.axes[graph.layers[layer]])
    if channels is None:
        return np.ones(size, dtype=np.bool_)
    wrong = sorted({channel for channel in channels if not 0 <= channel < size})
    if wrong or len(set(channels)) < len(channels) or not channels:
        found = f"channels {wrong} do not exist" if wrong else "one stands twice" if channels else "none is kept"
        raise ModelError(
            f"the pruning decision for {layer!r} is not possible: {found}",
            do=f"list at least one of its channels 0 to {size - 1}, each once",
        )
    stay = np.zeros(size, dtype=np.bool_)
    stay[list(channels)] = True
    return stay


def frozen_summary(graph: ChannelGraph, most: int = 6) -> str | None:
    """Which layers stay whole and why, in one sentence; None where the only ones are the model's outputs."""
    told: dict[str, list[str]] = {}
    for group in graph.groups:
        if group.reason is not None and "output of the model" not in group.reason:
            told.setdefault(group.reason, []).extend(group.layers)
    if not told:
        return None
    parts = [f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in told.items()]
    more = f"; and {len(parts) - most} more reasons" if len(parts) > most else ""
    return f"layers that keep all their channels: {'; '.join(parts[:most])}{more}"


def renormalized_summary(graph: ChannelGraph, kept: Mask) -> str | None:
    """Which layers lose channels that a norm takes its statistics over, in one sentence; None where none does."""
    changed: dict[str, None] = {}
    norms: dict[str, None] = {}
    for seen in graph.seen:
        lost = set() if seen.renormalized is None else set(seen.renormalized[~graph.kept_of(seen.renormalized, kept)])
        for group in graph.groups if lost else ():
            if lost.intersection(group.units):
                norms[seen.operator] = None
                changed.update(dict.fromkeys(group.layers))
    if not changed:
        return None
    return (
        f"{', '.join(changed)}: {' and '.join(norms)} takes its statistics over these layers' channels, so that those "
        "that stay change as well when some leave; training has to make up for it"
    )
