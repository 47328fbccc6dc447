"""How sure an exit must be: temperatures that make confidences honest, and the thresholds that pay best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

UNUSED = 2.0
"""A threshold that no confidence reaches."""
TEMPERATURES = (0.05, 20.0)
NEIGHBOURHOOD = 0.002
"""A threshold may move over this share of the samples to stand in a wider gap."""
_GRID = {1: None, 2: 100, 3: 24}
"""Thresholds tried for each exit when all combinations are tried, by the number of exits; None: all that differ."""
_GRID_BEYOND = 12
_STARTS = 8
_SLACK = 1e-9  # sums of many floats


@dataclass(frozen=True)
class Choice:
    """Thresholds and what they are expected to give.

    `thresholds`: one an exit, above 1 where it is unused. `shares`: of the samples, by the answer they take, the last
    stage's last: [exits + 1]. `mean_ms`: the mean latency. `drop_points`: the mean score below that of the last stage
    alone (negative: above it). `met`: whether the constraint holds.
    """

    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    mean_ms: float
    drop_points: float
    met: bool


def temperature(logits: Array, labels: Array) -> float:
    """The temperature whose division makes these logits likeliest, between 0.05 and 20.

    Args: logits: [n, classes]. labels: class numbers [n].
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2. The likelihood has one peak (it is concave in 1/temperature),
    so a golden-section search on the logarithm finds it.
    """
    values = logits.astype(np.float64)
    values = values - values.max(1, keepdims=True)
    right = values[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((np.log(np.exp(values * inverse).sum(1)) - right * inverse).mean())

    low, high = np.log(TEMPERATURES[0]), np.log(TEMPERATURES[1])
    golden = (np.sqrt(5) - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    while high - low > 1e-6:
        if loss_a <= loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - golden * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + golden * (high - low)
            loss_b = loss(b)
    return float(np.exp((low + high) / 2))


def choose(
    confidences: Sequence[Array] | Array,
    scores: Sequence[Array] | Array,
    path_ms: Sequence[float],
    *,
    max_drop: float | None = None,
    mean_latency_ms: float | None = None,
) -> Choice:
    """The thresholds of the least mean latency that cost at most `max_drop` points; or of the best score in a latency.

    With `mean_latency_ms` the mean score is the largest within this mean latency, and `max_drop` binds nothing; where
    even the fastest way takes longer, that way is the choice, not `met`.

    Args: confidences: [exits, n]. scores: [exits + 1, n], each 0 to 1. path_ms: [exits + 1], what an answer costs there
    with all before it. max_drop: in points below the last stage's own mean score; None: any drop will do.

    One exit is exact over all thresholds. With more, all combinations of a grid of quantiles are tried, and from the
    best of them each threshold in turn is moved to its exact optimum until none moves.
    """
    given = np.asarray(scores, np.float64)
    problem = _Problem(
        np.asarray(confidences, np.float64).reshape(len(path_ms) - 1, given.shape[1]),
        given,
        np.asarray(path_ms, np.float64),
        max_drop,
        mean_latency_ms,
    )
    if not len(problem.confidences):
        return problem.choice(())
    best: tuple[float, ...] | None = None
    for start in problem.starts():
        found = problem.descend(start)
        if best is None or problem.key(found) < problem.key(best):
            best = found
    assert best is not None
    return problem.choice(problem.settle(best))


def best_subset(
    confidences: Sequence[Array] | Array,
    scores: Sequence[Array] | Array,
    reach_ms: Sequence[float],
    overhead_ms: Sequence[float],
    last_ms: float,
    *,
    max_exits: int,
    max_drop: float | None = None,
    mean_latency_ms: float | None = None,
) -> tuple[tuple[int, ...], Choice]:
    """The candidates whose exits pay best together, at most `max_exits` of them, and their thresholds.

    Args: confidences: [candidates, n]. scores: [candidates + 1, n]. reach_ms: [candidates], an answer at this exit where
    it is the only one. overhead_ms: [candidates], what this exit adds for those that go on. last_ms: the model without
    exits. The rest as in `choose`.
    Returns: the candidates' places, in order, empty where no exit pays; and the choice for them.
    """
    every = len(reach_ms)
    best: tuple[tuple[int, ...], Choice] | None = None
    for count in range(min(max_exits, every) + 1):  # smaller first: one more exit must earn its place
        for subset in itertools.combinations(range(every), count):
            paths = path_costs(subset, reach_ms, overhead_ms, last_ms)
            choice = choose(
                [confidences[i] for i in subset],
                [scores[i] for i in (*subset, every)],
                paths,
                max_drop=max_drop,
                mean_latency_ms=mean_latency_ms,
            )
            if best is None or _rank(choice, mean_latency_ms) < _rank(best[1], mean_latency_ms):
                best = subset, choice
    assert best is not None
    return best


def path_costs(
    subset: Sequence[int], reach_ms: Sequence[float], overhead_ms: Sequence[float], last_ms: float
) -> list[float]:
    """What each answer costs, [exits + 1]: the way to it, and what the exits before it add.

    A measured overhead below nothing is noise and counts as none.
    """
    added = [max(overhead_ms[i], 0.0) for i in subset]
    return [reach_ms[i] + sum(added[:place]) for place, i in enumerate(subset)] + [last_ms + sum(added)]


def _rank(choice: Choice, mean_latency_ms: float | None) -> tuple[float, ...]:
    """Smaller is better."""
    quality = (choice.drop_points, choice.mean_ms)
    if mean_latency_ms is None or not choice.met:
        quality = (choice.mean_ms, choice.drop_points)
    return (not choice.met, *(round(value, 9) for value in quality))


@dataclass(frozen=True)
class _Problem:
    confidences: Array  # [exits, n]
    scores: Array  # [exits + 1, n]
    path_ms: Array  # [exits + 1]
    max_drop: float | None
    mean_latency_ms: float | None

    def choice(self, thresholds: tuple[float, ...]) -> Choice:
        """What these thresholds give."""
        n = self.scores.shape[1]
        taken = self._taken(thresholds)
        shares = np.bincount(taken, minlength=len(self.path_ms)) / n
        mean_ms, drop = self._totals(taken)
        return Choice(
            thresholds,
            tuple(map(float, shares)),
            mean_ms,
            drop,
            bool(self._violation(np.array(mean_ms), np.array(drop)) <= 0),
        )

    def key(self, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        """Smaller is better."""
        mean_ms, drop = self._totals(self._taken(thresholds))
        return tuple(map(float, self._keys(np.array(mean_ms), np.array(drop))))

    def _taken(self, thresholds: Sequence[float]) -> Array:
        taken = np.full(self.scores.shape[1], len(thresholds))
        for place in reversed(range(len(thresholds))):
            taken[self.confidences[place] >= thresholds[place]] = place
        return taken

    def _totals(self, taken: Array) -> tuple[float, float]:
        n = self.scores.shape[1]
        score = self.scores[taken, np.arange(n)].mean()
        return float(self.path_ms[taken].mean()), float(100 * (self.scores[-1].mean() - score))

    def _violation(self, mean_ms: Array, drop: Array) -> Any:
        """By how much the constraint is missed; 0 or less where it holds."""
        if self.mean_latency_ms is not None:
            return np.maximum(mean_ms - self.mean_latency_ms - _SLACK, 0)
        if self.max_drop is not None:
            return np.maximum(drop - self.max_drop - _SLACK, 0)
        return np.zeros_like(mean_ms)

    def _keys(self, mean_ms: Array, drop: Array) -> tuple[Array, ...]:
        """What is smallest for the best, the weightiest first."""
        wanted = (mean_ms, drop) if self.mean_latency_ms is None else (drop, mean_ms)
        # Rounded: equal choices must not differ by the order in which their sums were taken.
        return (self._violation(mean_ms, drop), *(np.round(value, 9) for value in wanted))

    def _order(self, mean_ms: Array, drop: Array) -> Array:
        """Places from best to worst."""
        order: Array = np.lexsort(tuple(key.ravel() for key in reversed(self._keys(mean_ms, drop))))
        return order

    def starts(self) -> list[tuple[float, ...]]:
        """The best combinations of a grid of thresholds, best first."""
        exits, n = self.confidences.shape
        steps = _GRID.get(exits, _GRID_BEYOND)
        grids = [_grid(confidences, steps) for confidences in self.confidences]
        sizes = tuple(map(len, grids))
        # above[e]: how many of the exit's thresholds a sample reaches: it leaves there at every place below that.
        above = [np.searchsorted(grid, c, side="right") for grid, c in zip(grids, self.confidences, strict=True)]
        score, cost = np.zeros(sizes), np.zeros(sizes)
        for place in range(exits + 1):
            # Who answers at `place` depends on the thresholds up to there: counted as sums over a histogram's corners.
            axes = above[: min(place + 1, exits)]
            shape = tuple(size + 1 for size in sizes[: len(axes)])
            flat = np.ravel_multi_index(axes, shape)
            for sums, weight in ((score, self.scores[place]), (cost, np.full(n, self.path_ms[place]))):
                table = np.bincount(flat, weights=weight, minlength=int(np.prod(shape))).reshape(shape)
                for axis in range(len(axes)):
                    if axis == place:  # leaves here: the threshold's place is below
                        table = np.flip(np.flip(table, axis).cumsum(axis), axis)
                        table = np.delete(table, 0, axis)
                    else:  # went on: it is at or above
                        table = np.delete(table.cumsum(axis), -1, axis)
                sums += table.reshape(table.shape + (1,) * (exits - len(axes)))  # noqa: PLW2901 - in place
        mean_ms, drop = cost / n, 100 * (self.scores[-1].mean() - score / n)
        best = self._order(mean_ms, drop)[:_STARTS]
        found = [np.unravel_index(place, sizes) for place in best]
        return [tuple(float(grid[i]) for grid, i in zip(grids, places, strict=True)) for places in found]

    def descend(self, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        """Each threshold in turn at its exact optimum beside the others, until none moves."""
        current = self.key(thresholds)
        while len(thresholds) > 1:  # with one exit the grid was exact
            for place in range(len(thresholds)):
                moved = (*thresholds[:place], self._line(thresholds, place), *thresholds[place + 1 :])
                if self.key(moved) < self.key(thresholds):
                    thresholds = moved
            if not self.key(thresholds) < current:
                break
            current = self.key(thresholds)
        return thresholds

    def _line(self, thresholds: tuple[float, ...], place: int) -> float:
        """The best threshold of one exit while the others stay."""
        taken = self._taken((*thresholds[:place], UNUSED, *thresholds[place + 1 :]))
        n = len(taken)
        coming = np.flatnonzero(taken > place)
        coming = coming[np.argsort(-self.confidences[place, coming], kind="stable")]
        confidences = self.confidences[place, coming]
        # totals[k]: the k surest leave here
        gain = self.scores[place, coming] - self.scores[taken[coming], coming]
        saved = self.path_ms[taken[coming]] - self.path_ms[place]
        mean_ms, drop = self._totals(taken)
        costs = mean_ms - np.concatenate([[0.0], saved.cumsum()]) / n
        drops = drop - 100 * np.concatenate([[0.0], gain.cumsum()]) / n
        distinct = np.append(confidences[:-1] != confidences[1:], True)[: len(coming)]
        places = np.concatenate([[0], np.flatnonzero(distinct) + 1])
        k = int(places[self._order(costs[places], drops[places])[0]])
        return float(confidences[k - 1]) if k else UNUSED

    def settle(self, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        """The thresholds in the middle of wide gaps.

        Another runtime rounds otherwise, and a sample whose confidence lies within a few units of rounding of a
        threshold takes another exit there. Confidences are dense, so the gap beside the best threshold may be as narrow
        as that; a little to its side there is a wider one. Of the gaps that at most 0.2% of the samples lie between,
        each threshold gets the widest in which the constraint still holds.
        """
        n = self.scores.shape[1]
        reach = int(NEIGHBOURHOOD * n)
        for place in range(len(thresholds)):
            taken = self._taken((*thresholds[:place], UNUSED, *thresholds[place + 1 :]))
            # who comes by; a quantile of all would count those that left before
            values = np.sort(self.confidences[place, taken > place])
            lower = int(np.searchsorted(values, thresholds[place], side="left"))  # so many go on
            if lower == len(values):
                thresholds = (*thresholds[:place], UNUSED, *thresholds[place + 1 :])
                continue
            met = self.key(thresholds)[0] <= 0
            near = range(max(lower - reach, min(lower, 1)), min(lower + reach, len(values) - 1) + 1)
            near = near if met else range(lower, lower + 1)
            edges = np.concatenate([[0.0], values])
            for k in sorted(near, key=_widest(edges, lower)):
                if edges[k] == edges[k + 1] and k:
                    continue  # no gap
                moved = (*thresholds[:place], _middle(edges[k], edges[k + 1]), *thresholds[place + 1 :])
                if self.key(moved)[0] <= self.key(thresholds)[0]:
                    thresholds = moved
                    break
        return thresholds


def _widest(edges: Array, chosen: int) -> Callable[[int], tuple[float, int]]:
    """Sorts gaps: the widest first, of equal ones the nearest."""
    return lambda k: (-float(edges[k + 1] - edges[k]), abs(k - chosen))


def _middle(low: float, high: float) -> float:
    """A number above `low`, at most `high`, that float32 holds: runtimes compare in float32."""
    middle = float(np.float32((low + high) / 2))
    return middle if low < middle <= high else float(high)


def _grid(confidences: Array, steps: int | None) -> Array:
    """Thresholds to try, ascending: the distinct confidences, or quantiles where they are too many; and none."""
    distinct = np.unique(confidences)
    if steps is not None and len(distinct) > steps:
        ranks = np.linspace(0, len(confidences) - 1, steps).round().astype(np.int64)
        distinct = np.unique(np.sort(confidences)[ranks])
    return np.append(distinct, UNUSED)
