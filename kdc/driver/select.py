"""Which candidate ships: of those that hold every limit on the validation split, the fastest."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from kdc.core.budget import Verdict
from kdc.driver.limits import Judged
from targets.ratio import Ratio

NO_DIFFERENCE = "no detectable difference"


def select(
    judged: Sequence[Judged],
    verdicts: Sequence[Sequence[Verdict]],
    ratio_between: Callable[[int, int], Ratio],
    barred: Container[int] = (),
) -> int:
    """The index of the candidate that ships, or of the nearest where none meets every limit.

    Of two that cannot be told apart in speed the one with the better metric ships: a float student where int8 gains
    nothing. The nearest is the one that misses its limits by the least in sum. What is barred does not ship.

    Args: verdicts: of each candidate, `kdc.driver.limits.limits`. ratio_between: the speed of the second candidate as a
        multiple of the first's.
    """
    open_ = [i for i in range(len(judged)) if i not in barred] or list(range(len(judged)))
    feasible = [i for i in open_ if all(one.met for one in verdicts[i])]
    if not feasible:
        return min(open_, key=lambda i: (sum(map(excess, verdicts[i])), -judged[i].ratio.ratio))
    best = max(feasible, key=lambda i: judged[i].ratio.ratio)
    for i in sorted(feasible, key=lambda i: judged[i].drop.points):
        if judged[i].drop.points < judged[best].drop.points and ratio_between(best, i).verdict == NO_DIFFERENCE:
            return i
    return best


def excess(verdict: Verdict) -> float:
    """By what fraction of the limit it is missed; 0 where it is met."""
    if verdict.met:
        return 0.0
    if verdict.bound != "at most":
        missed = verdict.limit / max(verdict.value, 1e-9) - 1
    else:
        missed = verdict.value / verdict.limit - 1 if verdict.limit else verdict.value + 1
    return max(missed, 0.0)  # an emulated value may be within the limit that it does not meet
