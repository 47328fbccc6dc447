"""Two files that were timed in the same rounds: how many times faster one is, and what can be said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel

from kdc.numerics.stats import Floats, log_means, paired_log_ratios, ratio_interval
from targets.job import FileTiming
from targets.latency import BlocksNs


class Ratio(BaseModel, frozen=True, extra="forbid"):
    """Baseline over candidate: above 1 the candidate is faster.

    A verdict other than "no detectable difference" needs the whole interval beyond the difference of interest.
    """

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "no detectable difference"]


def judge(baseline_ns: BlocksNs, candidate_ns: BlocksNs, interest: float, means: bool = False) -> Ratio:
    """The ratio of two files that were timed in the same rounds, and what can be said of it.

    "faster" or "slower" take an interval that lies beyond 1 + interest, or 1 / (1 + interest), as a whole.

    Args: means: whether the work of one of the two depends on its input, so that their means are compared.
    """
    interval = ratio_interval(paired_log_ratios(baseline_ns, candidate_ns, means=means))
    verdict: Literal["faster", "slower", "no detectable difference"] = "no detectable difference"
    if interval.low >= 1 + interest:
        verdict = "faster"
    elif interval.high <= 1 / (1 + interest):
        verdict = "slower"
    return Ratio(ratio=interval.value, low=interval.low, high=interval.high, verdict=verdict)


def precise(found: Sequence[tuple[FileTiming, ...]], precision: float, mixed: Sequence[bool]) -> bool:
    """Whether each ratio's interval (of one file alone, its time's) is at most `precision` to either side."""
    blocks = [[process[index].blocks_ns for process in found] for index in range(len(found[0]))]
    logs: list[Floats]
    if len(blocks) == 1 and mixed[0]:
        logs = [log_means(blocks[0])]
    elif len(blocks) == 1:
        logs = [np.log([np.median([np.median(block) for block in process]) for process in blocks[0]])]
    else:
        logs = [
            paired_log_ratios(blocks[0], candidate, means=mixed[0] or skipping)
            for candidate, skipping in zip(blocks[1:], mixed[1:], strict=True)
        ]
    intervals = [ratio_interval(one) for one in logs]
    return all(math.log(interval.high / interval.low) / 2 <= math.log1p(precision) for interval in intervals)
