"""What a handful of seeds supports: means over trainings, and differences that are paired by seed and by sample.

A training is drawn anew with every seed, and a split is a draw of samples. A difference that is to hold for the next
training on the next samples must be larger than what both draws make of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from kdc.numerics.stats import Interval

SEEDS_TRUSTED = 5  # the least whose spread, where it is small, is not taken for luck

Verdict = Literal["better", "no difference shown", "worse"]


class Difference(NamedTuple):
    """How far one method is above another, in points, with its interval and two-sided p-value."""

    points: float
    low: float
    high: float
    p_value: float


def mean_over_seeds(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Give the mean of one figure a seed [seeds], in its own unit, with Student's t interval.

    It tells how far the mean of other seeds may lie, on these very samples.

    Raises: ValueError with fewer than two seeds, for one tells nothing of the spread between them.
    """
    figures = np.asarray(values, dtype=np.float64).reshape(-1)
    if figures.size < 2:
        raise ValueError(f"an interval over seeds needs at least two, found {figures.size}")
    mean = float(figures.mean())
    half = float(stdtrit(figures.size - 1, (1 + level) / 2)) * float(figures.std(ddof=1)) / math.sqrt(figures.size)
    return Interval(mean, mean - half, mean + half)


def crossed_difference(method: ArrayLike, reference: ArrayLike, *, level: float = 0.95) -> Difference:
    """Give how far a method scores above a reference, where both were trained with the same seeds, and test it.

    With d[s, i] the difference on sample i of the two trainings of seed s, and the two-way mean squares of d

        MS_S  = n sum_s (d[s, .] - d[., .])^2 / (r - 1)
        MS_I  = r sum_i (d[., i] - d[., .])^2 / (n - 1)
        MS_SI = sum_si (d[s, i] - d[s, .] - d[., i] + d[., .])^2 / ((r - 1) (n - 1))

    the mean's variance is V = (max(MS_S, MS_SI) + max(MS_I - MS_SI, 0)) / (r n), and the mean over its root is judged by
    Student's t with (V r n)^2 / (MS_S^2 / (r - 1)) degrees of freedom, n - 1 at the most.

    This is the test of radiology's studies with several readers and cases, both of them drawn at random: our seeds are
    the readers, our samples the cases. Each of the ways that seem simpler leaves out one of the two draws, or cannot
    decide. McNemar's test on one seed, or on all seeds as if they were new samples, takes one training's luck for the
    method. The t test over the seeds' means takes this split for the world: with few samples, what is better on them
    need not be on others. The exact sign-flip test of five seeds has no two-sided p-value below 2 / 32.

    The two bounds are ours, for p-values that are corrected for forty methods, where tails count. MS_S of five seeds can
    be small by luck, but never in the mean below MS_SI. In simulations of equal methods (`tests/numerics/test_seeds.py`)
    five seeds gave p < 0.001 at 0.2 to 1.8 times that rate, without the bound up to 3 times. With fewer seeds that is not
    enough: there the degrees of freedom take max(MS_S, MS_SI) too, which finds large differences only.

    Args: method, reference: scores in 0..1, [seeds, samples], the same seeds and samples in the same order. level: the
        probability of holding the true difference.
    Returns: 100 times the mean of method - reference, with its interval, in points. Where all differences are 0 the
        interval gets the rule of three, 300 / n points, and p is 1.
    Raises: ValueError where the two do not pair, or there are fewer than two seeds or samples.
    Source: Dorfman, Berbaum and Metz 1992, doi:10.1097/00004424-199209000-00015 (the model); Hillis 2007,
        doi:10.1002/sim.2532 (degrees of freedom); Hanley and Lippman-Hand 1983, doi:10.1001/jama.1983.03330370053031
        (rule of three).
    """
    above, below = np.asarray(method, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 2:
        raise ValueError(f"scores of shape {above.shape} cannot be paired with {below.shape}")
    seeds, samples = above.shape
    if seeds < 2 or samples < 2:
        raise ValueError(f"a difference over seeds and samples needs two of each, found {seeds} and {samples}")
    d = above - below
    mean = float(d.mean())
    by_seed, by_sample = d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    of_seeds = samples * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
    of_samples = seeds * float(((by_sample - mean) ** 2).sum()) / (samples - 1)
    of_both = float(((d - by_seed - by_sample + mean) ** 2).sum()) / ((seeds - 1) * (samples - 1))
    at_least = max(of_seeds, of_both)
    spread = at_least + max(of_samples - of_both, 0.0)
    if spread <= 1e-30:  # every seed and every sample differ by the same
        rule = 300 / samples
        return Difference(100 * mean, 100 * mean - rule, 100 * mean + rule, 1.0 if mean == 0 else 0.0)
    trusted = of_seeds if seeds >= SEEDS_TRUSTED else at_least
    degrees = samples - 1.0
    if trusted > 0:
        degrees = min(degrees, spread**2 / (trusted**2 / (seeds - 1)))
    error = math.sqrt(spread / (seeds * samples))
    half = float(stdtrit(degrees, (1 + level) / 2)) * error
    p_value = 2 * float(stdtr(degrees, -abs(mean) / error))
    return Difference(100 * mean, 100 * (mean - half), 100 * (mean + half), min(1.0, p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """Give the p-values, adjusted so that the chance of any false finding among them all stays below the level.

    The smallest is multiplied by their number m, the next by m - 1, and so on; none falls below the one before it, and
    none exceeds 1. It needs no independence: all methods are compared with the same reference.

    Args: p_values: [m], in any order.
    Returns: [m], in the same order.
    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(points: float, p_value: float, *, alpha: float = 0.05) -> Verdict:
    """Give what a difference in points and its (adjusted) p-value show; "no difference shown" is not "equal"."""
    if p_value >= alpha or points == 0:
        return "no difference shown"
    return "better" if points > 0 else "worse"
