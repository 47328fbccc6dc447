"""Where a series of throughputs begins to fall: the onset of throttling.

Whether it changes at all is asked of ranks, which bursts of other work move little: Pettitt's test (A. N. Pettitt, A
non-parametric approach to the change-point problem, Applied Statistics 28(2), 1979), whose statistic is the largest
|U_t|, U_t = 2 * (sum of the first t ranks) - t * (n + 1), with p about 2 * exp(-6 K^2 / (n^3 + n^2)). It takes values for
independent; other work comes in spells, so a series that tests as changed must also end at least `LEAST_DROP` below where
it began: a machine that recovers did not throttle.

Where it begins is asked of least squares, on medians of five windows: a step (one level, then another) and a ramp (a
level, then a straight line down) are laid through every place, and the best of all tells the onset and the kind. A drift
without a beginning is a ramp from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from kdc.numerics.stats import Floats

P_VALUE = 0.001
LEAST_DROP = 0.03
LEAST_WINDOWS = 20
SMOOTHED = 5  # windows


class Onset(NamedTuple):
    """The first window that is slower, the kind of fall, and the rates before it and at the series' end."""

    window: int
    kind: Literal["step", "drift"]
    before: float
    after: float


def find_onset(rates: Sequence[float], least_drop: float = LEAST_DROP) -> Onset | None:
    """The onset of a lasting fall of a throughput; None where there is none, or fewer than 20 windows to say so."""
    if len(rates) < LEAST_WINDOWS:
        return None
    smooth = smoothed(np.asarray(rates, float))
    if pettitt(np.asarray(rates, float)) > P_VALUE:
        return None
    index, kind = _best_fit(smooth)
    tenth = max(3, len(smooth) // 10)
    before = float(np.median(smooth[: max(index, tenth)]))
    after = float(np.median(smooth[-tenth:]))
    return Onset(index, kind, before, after) if after < before * (1 - least_drop) else None


def smoothed(rates: Floats) -> Floats:
    """The median of each value and its two neighbours to either side; the ends repeat."""
    half = SMOOTHED // 2
    padded = np.pad(rates, half, mode="edge")
    medians: Floats = np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHED), axis=1)
    return medians


def pettitt(rates: Floats) -> float:
    """The p-value of Pettitt's test: how likely as large a change is in a series without one. Ties share their rank."""
    count = len(rates)
    _, places, counts = np.unique(rates, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    sums = 2 * np.cumsum(ranks) - np.arange(1, count + 1) * (count + 1)
    largest = float(np.max(np.abs(sums)))
    return min(1.0, 2 * float(np.exp(-6 * largest**2 / (count**3 + count**2))))


def _best_fit(rates: Floats) -> tuple[int, Literal["step", "drift"]]:
    """The place and kind of the change that leaves the smallest sum of squares."""
    count = len(rates)
    places = np.arange(count)
    found: list[tuple[float, int, Literal["step", "drift"]]] = []
    for index in range(count - 2):
        if index >= 2:
            first, second = rates[:index], rates[index:]
            squares = float(((first - first.mean()) ** 2).sum() + ((second - second.mean()) ** 2).sum())
            found.append((squares, index, "step"))
        slope = np.maximum(0, places - index)
        design = np.stack([np.ones(count), slope], axis=1)
        solved = np.linalg.lstsq(design, rates, rcond=None)[0]
        found.append((float(((rates - design @ solved) ** 2).sum()), index, "drift"))
    _, index, kind = min(found)
    return index, kind
