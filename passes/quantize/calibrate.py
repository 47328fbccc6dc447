"""The ranges of tensors, from two looks at the calibration data: first the ends, then a histogram between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import fx

from kdc.core.data import Split
from kdc.core.device import QuantizationScheme
from kdc.core.errors import DataError
from kdc.numerics.affine import mse_range, percentile_range

Calibration = Literal["minmax", "percentile", "mse"]
BINS = 2048
BATCH = 64


def ranges(
    graph: fx.GraphModule,
    groups: dict[str, list[fx.Node]],
    samples: Split,
    calibration: Calibration,
    percentile: float,
    scheme: QuantizationScheme,
    report: Callable[[int, int], None],
) -> dict[str, tuple[float, float]]:
    """The range that each group of tensors is to be quantized in: {group: (low, high)}.

    Memory is that of one batch and one histogram for each group, however many samples there are.
    Raises: DataError where a sample gives a value that is not finite.
    """
    low = dict.fromkeys(groups, torch.inf)
    high = dict.fromkeys(groups, -torch.inf)
    looks = 1 if calibration == "minmax" else 2

    def widen(group: str, x: torch.Tensor) -> None:
        first, last = torch.aminmax(x)
        if not torch.isfinite(last - first):
            raise DataError(f"calibration gives a value that is not finite at tensor {group!r}")
        low[group], high[group] = min(low[group], first.item()), max(high[group], last.item())

    _look(graph, groups, samples, widen, lambda done: report(done, looks * len(samples)))
    whole = {group: (low[group], high[group]) for group in groups}
    if calibration == "minmax":
        return whole

    counts = {group: torch.zeros(BINS, dtype=torch.float64) for group in groups}

    def fill(group: str, x: torch.Tensor) -> None:
        if low[group] < high[group]:
            # float32 as the values are: an end that was rounded down would leave the largest value out.
            counts[group] += torch.histc(x.float(), BINS, low[group], high[group]).double()

    _look(graph, groups, samples, fill, lambda done: report(len(samples) + done, looks * len(samples)))
    chosen = {}
    for group, (first, last) in whole.items():
        edges = torch.linspace(first, last, BINS + 1, dtype=torch.float64)
        if first == last:
            chosen[group] = (first, last)
        elif calibration == "percentile":
            chosen[group] = percentile_range(edges, counts[group], percentile)
        else:
            middle = (edges[1:] + edges[:-1]) / 2
            chosen[group] = mse_range(
                middle, counts[group], first, last, scheme.activations, symmetric=scheme.symmetric_activations
            )
    return chosen


def _look(
    graph: fx.GraphModule,
    groups: dict[str, list[fx.Node]],
    samples: Split,
    see: Callable[[str, torch.Tensor], None],
    report: Callable[[int], None],
) -> None:
    watched = {tensor: group for group, tensors in groups.items() for tensor in tensors}
    watcher = _Watcher(graph, watched, see)
    done = 0
    with torch.no_grad():
        for batch in samples.batches(BATCH):
            watcher.run(*batch.inputs)
            done += len(batch)
            report(done)


class _Watcher(fx.Interpreter):
    """Runs the graph and shows the tensors that are watched."""

    def __init__(
        self, graph: fx.GraphModule, watched: dict[fx.Node, str], see: Callable[[str, torch.Tensor], None]
    ) -> None:
        super().__init__(graph)
        self.watched, self.see = watched, see

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            self.see(self.watched[n], value)
        return value


def spread(samples: Split, count: int) -> Split:
    """At most `count` samples, spread evenly over the split."""
    if len(samples) <= count:
        return samples
    return samples[torch.linspace(0, len(samples) - 1, count).round().long()]
