"""Intervals and paired tests: what a measurement supports, and no more. Randomness comes in as a Generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Clusters = Sequence[Sequence[ArrayLike]]
"""Samples by process, then by block: what was measured together stands together."""

CHUNK = 2**22  # numbers held at once while resampling: 32 MiB
RULE_OF_THREE_POINTS = 300.0  # over n samples: what a drop may still be, in points, where none of them shows any
REPEATS = 3  # how often a block runs each of its inputs, where the input decides how much work there is


class Interval(NamedTuple):
    """An estimate and the ends of its interval, in the estimate's own unit."""

    value: float
    low: float
    high: float


class Drop(NamedTuple):
    """How far a model falls below another on the same samples, in points; `p_value` only where scores are 0 or 1."""

    points: float
    low: float
    high: float
    p_value: float | None


def percentile(samples: ArrayLike, p: float) -> float | None:
    """Give the quantile of the samples [n] at 0 < p < 1, or None where n < 10 / (1 - p).

    With fewer than ten samples beyond it, a tail's quantile is mostly the luck of its few largest samples: p90 takes
    100 samples, p99 takes 1000, p99.9 takes 10000.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not 0 < p < 1:
        raise ValueError(f"a quantile lies between 0 and 1, found {p}")
    # 10 / (1 - 0.9) is 100.00000000000001 in binary, which a sample of 100 must not fail
    if values.size < 10 / (1 - p) * (1 - 1e-9):
        return None
    return float(np.quantile(values, p))


def student_t_quantile(p: float, degrees: int) -> float:
    """Give the value that Student's t with this many degrees of freedom (>= 1) stays below with probability 0 < p < 1.

    By bisection on the distribution's finite series. Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    """
    if degrees < 1 or not 0 < p < 1:
        raise ValueError(f"no t quantile at p = {p} with {degrees} degrees of freedom")
    if p < 0.5:
        return -student_t_quantile(1 - p, degrees)
    low, high = 0.0, 1.0
    while _t_within(high, degrees) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _t_within(t: float, degrees: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for k in range(1 if degrees % 2 else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total


def median_interval(
    clusters: Clusters, generator: np.random.Generator, *, level: float = 0.95, resamples: int = 1000
) -> Interval:
    """Give the median of all samples, with its bootstrap interval when they come in blocks, and blocks in processes.

    Processes are drawn with replacement, then blocks within each drawn process; a block's samples stay together, for
    they share the cache, the clock and the neighbours. So it is a block bootstrap: runs that follow each other are drawn
    together, and autocorrelation within a block is kept, whatever its form. What reaches over blocks (a slow drift, a
    session's place in memory) is kept by drawing whole processes, which start anew and are independent. The percentile
    interval is widened as Hesterberg's expanded percentile interval, because the plain one is far too narrow for a
    handful of processes.

    Args: clusters: [processes][blocks][samples], any unit, every block with at least one sample. level: the probability
    of holding the true median. resamples: how often the sample is drawn anew.

    Returns: the median and its interval, in the samples' unit.

    Raises: ValueError where there is no sample.

    Source: Davison and Hinkley 1997, Bootstrap Methods, section 3.8 (two-stage); Hesterberg 2015, arXiv:1411.5279,
    section 3.3 (expanded percentiles); Künsch 1989, doi:10.1214/aos/1176347265 (blocks for dependent samples);
    Kalibera and Jones 2013, doi:10.1145/2464157.2464160 (levels of repetition).
    """
    return _resampled_quantile(clusters, 0.5, generator, level, resamples)


def quantile_interval(
    clusters: Clusters, p: float, generator: np.random.Generator, *, level: float = 0.95, resamples: int = 1000
) -> Interval | None:
    """Give the quantile of all samples at 0 < p < 1 with its bootstrap interval, or None where `percentile` gives None.

    Processes and blocks are drawn as in `median_interval`.

    Args: clusters: [processes][blocks][samples], any unit. level: the probability of holding the true quantile.

    Returns: the quantile and its interval, in the samples' unit.

    Raises: ValueError where there is no sample.
    """
    if percentile([sample for process in clusters for block in process for sample in np.ravel(block)], p) is None:
        return None
    return _resampled_quantile(clusters, p, generator, level, resamples)


def _resampled_quantile(
    clusters: Clusters, p: float, generator: np.random.Generator, level: float, resamples: int
) -> Interval:
    blocks = [np.asarray(block, dtype=np.float64) for process in clusters for block in process]
    counts = [len(process) for process in clusters if len(process)]
    if not blocks or any(block.size == 0 for block in blocks):
        raise ValueError("a quantile of no samples")
    samples = np.concatenate(blocks)
    order = np.argsort(samples, kind="stable")
    ranked = samples[order]
    block_of = np.repeat(np.arange(len(blocks)), [block.size for block in blocks])[order]
    first = np.cumsum([0, *counts])[:-1]
    quantiles = np.empty(resamples)
    for k in range(resamples):
        drawn = [
            first[process] + generator.integers(counts[process], size=counts[process])
            for process in generator.integers(len(counts), size=len(counts))
        ]
        times = np.bincount(np.concatenate(drawn), minlength=len(blocks))
        passed = np.cumsum(times[block_of])
        quantiles[k] = ranked[np.searchsorted(passed, passed[-1] * p)]
    tail = _expanded_tail(level, len(counts) if len(counts) > 1 else len(blocks))
    low, high = np.quantile(quantiles, [tail, 1 - tail])
    value = float(np.quantile(samples, p))
    return Interval(value, min(float(low), value), max(float(high), value))


def _expanded_tail(level: float, clusters: int) -> float:
    """Give the tail to cut so that a percentile interval of few clusters is as wide as their mean's t interval."""
    if clusters < 2:
        return (1 - level) / 2
    t = student_t_quantile((1 + level) / 2, clusters - 1)
    return NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * t)


def mean_over_inputs(block: ArrayLike, repeats: int = REPEATS) -> float:
    """Give the mean over a block's inputs of the median of each input's runs.

    For a model that does more work for some inputs: the median of such runs tells of the most frequent work alone, and
    their plain mean of the luck of the machine, for a run that is preempted can take a hundred times its time. Clipping
    long runs would need to know whether they are rare and preempted or rare and hard; the other runs of the same input
    do know. One preempted run of an input leaves its median where it was, and any mix of easy and hard inputs counts
    in full.

    Args: block: [repeats * inputs], all inputs in one order, then all again in the same order; any unit. repeats: >= 1.

    Returns: the mean, in the block's unit.

    Raises: ValueError where the block is empty or no multiple of `repeats`.
    """
    runs = np.asarray(block, dtype=np.float64)
    if runs.size == 0 or runs.size % repeats:
        raise ValueError(f"a block of {runs.size} runs is not each input run {repeats} times")
    return float(np.median(runs.reshape(repeats, -1), axis=0).mean())


def log_means(clusters: Clusters) -> Floats:
    """Give each process's log of the mean over its rounds of `mean_over_inputs`: [processes].

    Args: clusters: [processes][rounds][REPEATS * inputs], samples > 0.

    Raises: ValueError as `mean_over_inputs`.
    """
    return np.array([math.log(np.mean([mean_over_inputs(b) for b in process])) for process in clusters], np.float64)


def paired_log_ratios(numerator: Clusters, denominator: Clusters, *, means: bool = False) -> Floats:
    """Give each process's log ratio of two things that were measured in the same rounds: [processes].

    Within a round the two blocks stand next to each other, so their ratio is free of the machine's slow drift; the
    process's figure is the median over its rounds of log(median of one block / median of the other).

    Where the work of one of the two depends on its input, the figure of each block is `mean_over_inputs`, and the
    process's figure is the log of the ratio of the means over rounds. A median over rounds would lean to the block with
    the typical number of hard inputs: with 4% of inputs at five times the work, in blocks of 40, it is 1.3% too low. And
    a mean beside a median would charge the one for the long runs that the other leaves out.

    Args: numerator, denominator: [processes][rounds][samples], the same processes and rounds, samples > 0. means:
    whether the work of one of them depends on its input; the blocks of both are as for `mean_over_inputs` then.

    Raises: ValueError where they do not pair, or a block does not hold what its statistic takes.
    """
    if [len(process) for process in numerator] != [len(process) for process in denominator]:
        raise ValueError("the two were not measured in the same processes and rounds")
    if means:
        return log_means(numerator) - log_means(denominator)
    ratios = [
        np.median([math.log(_median(top) / _median(bottom)) for top, bottom in zip(above, below, strict=True)])
        for above, below in zip(numerator, denominator, strict=True)
    ]
    return np.array(ratios, dtype=np.float64)


def ratio_interval(log_ratios: ArrayLike, *, level: float = 0.95) -> Interval:
    """Give the ratio exp(mean), and its t interval, from one log ratio per process [processes].

    The process is what is repeated: rounds of one process share its memory placement, which alone moves a session's
    time by one or two percent, so that many rounds in one process give a narrow interval around a wrong ratio.

    Raises: ValueError with fewer than two processes, for one tells nothing of the spread between them.

    Source: Kalibera and Jones 2013, section 6, doi:10.1145/2464157.2464160; the log makes a ratio and its
    inverse agree.
    """
    logs = np.asarray(log_ratios, dtype=np.float64)
    if logs.size < 2:
        raise ValueError(f"an interval of a ratio needs at least two processes, found {logs.size}")
    mean = float(logs.mean())
    half = student_t_quantile((1 + level) / 2, logs.size - 1) * float(logs.std(ddof=1)) / math.sqrt(logs.size)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def smallest_difference(log_ratios: ArrayLike, interest: float, *, level: float = 0.95, power: float = 0.9) -> float:
    """Give the least true difference that processes which spread like these would find, with probability `power`.

    A verdict needs the whole t interval beyond 1 + interest. With n processes whose log ratios have the standard
    deviation s, the interval's half-width is h = t((1 + level) / 2, n - 1) * s / sqrt(n); the estimate itself falls more
    than t(power, n - 1) * s / sqrt(n) below the truth with probability 1 - power. So the difference is found where

        log(1 + difference) >= log(1 + interest) + (t((1 + level) / 2, n - 1) + t(power, n - 1)) * s / sqrt(n)

    The second t stands for a quantile of the noncentral t: with 5 processes the true power is 0.89 for 0.9, with 3 it is
    0.85. And s is itself an estimate: with 5 processes the true spread is between 0.6 and 2.9 times the one that was seen
    (95%, by the chi-squared distribution).

    Args: log_ratios: [processes], of a thing against itself. interest: the share up to which a difference is none.

    Returns: the difference as a share: 0.03 for a thing that takes 3% longer.

    Raises: ValueError with fewer than two processes.

    Source: NIST/SEMATECH e-Handbook of Statistical Methods, section 7.2.2.2, "Sample sizes required", solved for the
    difference.
    """
    logs = np.asarray(log_ratios, dtype=np.float64)
    if logs.size < 2:
        raise ValueError(f"a spread between processes needs at least two, found {logs.size}")
    t = student_t_quantile((1 + level) / 2, logs.size - 1) + student_t_quantile(power, logs.size - 1)
    return math.exp(math.log1p(interest) + t * float(logs.std(ddof=1)) / math.sqrt(logs.size)) - 1


def is_steady(window_medians: Sequence[float], *, tolerance: float = 0.02, windows: int = 6) -> bool:
    """Tell whether a series of windows' medians [w] has stopped falling.

    True when, of its last `windows`, the later half's median is at most `tolerance` below the earlier half's. Warming
    up only makes runs faster, so a noisy neighbour's slow windows do not count as unsteady: a two-sided test, such as
    the coefficient of variation of Georges et al. 2007 (doi:10.1145/1297027.1297033, section 4.2), never passes on a
    busy machine.
    """
    if len(window_medians) < windows:
        return False
    recent = window_medians[-windows:]
    earlier, later = np.median(recent[: windows // 2]), np.median(recent[windows // 2 :])
    return bool(later >= earlier * (1 - tolerance))


def accuracy_interval(scores: ArrayLike, *, level: float = 0.95) -> Interval:
    """Give the mean of samples' scores [n] in 0..1, in points 0..100, with its interval.

    Scores that are all 0 or 1 get Wilson's interval, which keeps its level near 0 and 100 points; others the t interval
    of their mean.

    Raises: ValueError where there is no score, or one outside 0..1.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953; Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286.
    """
    values = _scores(scores)
    n, mean = values.size, float(values.mean())
    if _is_binary(values):
        return fraction_interval(mean, n, level=level)
    half = student_t_quantile((1 + level) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
    return Interval(100 * mean, 100 * max(0.0, mean - half), 100 * min(1.0, mean + half))


def fraction_interval(fraction: float, n: int, *, level: float = 0.95) -> Interval:
    """Give a fraction of n samples, in points 0..100, with Wilson's interval.

    Args: fraction: 0..1. n: >= 1.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    # at 0 and at 100 points Wilson's end is the estimate itself, but for the last bit
    low, high = min(fraction, max(0.0, middle - half)), max(fraction, min(1.0, middle + half))
    return Interval(100 * fraction, 100 * low, 100 * high)


def paired_drop(
    reference: ArrayLike,
    candidate: ArrayLike,
    generator: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> Drop:
    """Give the points that a candidate falls below a reference on the same samples, with its bootstrap interval.

    Samples are drawn in pairs, so that what both get right or wrong together does not widen the interval. Where all
    differences are equal the bootstrap sees no spread at all; the interval then gets the rule of three, 300 / n points.

    Args: reference, candidate: scores in 0..1 of the same samples in the same order, [n] each. level: the probability
    of holding the true drop. resamples: how often the samples are drawn anew.

    Returns: points (100 times the mean of reference - candidate; positive where the candidate is worse) and McNemar's
    exact p-value where all scores are 0 or 1.

    Raises: ValueError where the two do not pair.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Hanley and Lippman-Hand 1983,
    doi:10.1001/jama.1983.03330370053031 (rule of three).
    """
    above, below = _scores(reference), _scores(candidate)
    if above.size != below.size:
        raise ValueError(f"{above.size} scores cannot be paired with {below.size}")
    n = above.size
    # Drawing counts of equal differences is the same bootstrap as drawing samples: 0/1 scores have only three of them.
    differences, counts = np.unique(above - below, return_counts=True)
    points = 100 * float((above - below).mean())
    if len(differences) == 1:
        low, high = max(-100.0, points - RULE_OF_THREE_POINTS / n), min(100.0, points + RULE_OF_THREE_POINTS / n)
    else:
        rows = max(1, CHUNK // len(differences))
        means = np.concatenate(
            [
                generator.multinomial(n, counts / n, size=min(rows, resamples - start)) @ differences / n
                for start in range(0, resamples, rows)
            ]
        )
        low, high = (100 * float(end) for end in np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    p_value = mcnemar_p(above, below) if _is_binary(above) and _is_binary(below) else None
    return Drop(points, min(low, points), max(high, points), p_value)


def mcnemar_p(reference: ArrayLike, candidate: ArrayLike) -> float:
    """Give the exact two-sided p-value that two classifiers err equally often on the same samples.

    Scores are 0 or 1, [n] each. Of the samples that only one gets right, either should get half: a binomial test at
    1/2.

    Source: McNemar 1947, doi:10.1007/BF02295996; Dietterich 1998, doi:10.1162/089976698300017197, section 3.1.
    """
    above, below = _scores(reference), _scores(candidate)
    lost, won = int(np.sum((above == 1) & (below == 0))), int(np.sum((above == 0) & (below == 1)))
    n, k = lost + won, min(lost, won)
    # in logs, for 2**n leaves a float's range at n = 1024
    logs = [math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) - n * math.log(2) for j in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log) for log in logs))


def _median(samples: ArrayLike) -> float:
    return float(np.median(np.asarray(samples, dtype=np.float64)))


def _scores(scores: ArrayLike) -> Floats:
    values: Floats = np.asarray(scores, dtype=np.float64).reshape(-1)
    if values.size == 0 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError("scores must be numbers between 0 and 1, at least one")
    return values


def _is_binary(values: Floats) -> bool:
    return bool(np.all((values == 0) | (values == 1)))
