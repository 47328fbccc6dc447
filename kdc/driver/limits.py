"""The one rule for limits: which figure of a student is held to each limit of the budget, and whether it holds.

- Latency and speed-up hold when the worse end of their 95% interval holds.
- Memory is the largest of several fresh processes; size and multiply-accumulates are exact.
- The drop is that on the validation split: the point, or the upper end of its paired interval where the budget says so.
- A speed-up must be proven where latency or speed-up is limited, or no cost at all is; else the student may not be proven
  slower.
- The test split confirms once: it contradicts where its whole interval lies beyond the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdc.core.budget import Bound, Budget, Verdict
from kdc.core.errors import PlanError, TargetError
from kdc.driver.lowering import Candidate
from kdc.numerics.stats import RULE_OF_THREE_POINTS, Drop, Interval, quantile_interval
from targets.latency import BlocksNs, Latency
from targets.measured import Profile
from targets.quick import MEMORY_PROCESSES
from targets.ratio import Ratio
from targets.settings import INTEREST

TOLERANCE_SECONDS, TOLERANCE_FRACTION = 15.0, 0.1  # within which `compile_minutes` is kept: whichever is more


@dataclass(frozen=True)
class Judged:
    """A candidate with its measured cost, and its drop and churn on the validation split."""

    candidate: Candidate
    profile: Profile
    ratio: Ratio
    drop: Drop
    blocks_ns: BlocksNs
    cold_ratio: Ratio | None = None
    cold_blocks_ns: BlocksNs = ()
    churn: float | None = None


def limits(budget: Budget, judged: Judged, minutes: float) -> tuple[Verdict, ...]:
    """Every limit of the budget beside the figure that is held to it, as far as measuring and validation go.

    What was measured on an emulated processor, times and the process's memory, meets no limit.

    Raises: TargetError where the budget's percentile needs more samples than were measured.
    """
    profile, ratio = judged.profile, judged.ratio
    emulated = profile.latency.emulated
    found = list[Verdict]()

    def hold(
        name: str,
        limit: float | None,
        value: float,
        end: str,
        bound: Bound = "at most",
        *,
        emulated: bool = False,
        tolerance: float = 0.0,
    ) -> None:
        if limit is not None:
            found.append(
                Verdict(
                    name=name, limit=limit, value=value, end=end, bound=bound, emulated=emulated, tolerance=tolerance
                )
            )

    if budget.latency_ms is not None:
        value, end = _latency(budget, profile.latency, judged.blocks_ns)
        hold("latency_ms", budget.latency_ms, value, end, emulated=emulated)
    if budget.latency_ms_cold is not None:
        if profile.cold is None:
            raise ValueError("the budget limits the cold latency, and no cold runs were measured")
        value, end = _latency(budget, profile.cold, judged.cold_blocks_ns)
        hold("latency_ms@cold", budget.latency_ms_cold, value, end, emulated=emulated)
    hold("min_speedup", budget.min_speedup, ratio.low, "lower end of its 95% interval", "at least", emulated=emulated)
    hold("size_mb", budget.size_mb, profile.size_mb, "exact")
    hold("macs", budget.macs, known(profile.macs), "exact")
    memory = f"largest of {MEMORY_PROCESSES} processes"
    hold("peak_memory_mb", budget.peak_memory_mb, profile.peak_memory_mb, memory, emulated=emulated)
    if budget.drop is not None:
        upper = budget.drop.by == "upper"
        value, end = (judged.drop.high, "upper end of its 95% interval") if upper else (judged.drop.points, "point")
        hold("max_drop", budget.drop.points, value, f"{end}, validation")
    if judged.churn is not None:
        hold("max_churn", budget.max_churn, judged.churn, "point, validation")
    if budget.compile_minutes is not None:
        tolerance = tolerance_seconds(budget.compile_minutes) / 60
        hold("compile_minutes", budget.compile_minutes, minutes, "of all commands so far", tolerance=tolerance)
    if budget.asks_for_speed:
        hold("proven_faster", 1 + INTEREST, ratio.low, "lower end of the speed-up's 95% interval", "at least",
             emulated=emulated)  # fmt: skip
    elif not emulated:
        hold("not_slower", 1 / (1 + INTEREST), ratio.high, "upper end of the speed-up's 95% interval", "above")
    return tuple(found)


def confirmed(verdicts: Sequence[Verdict], drop: Drop, churn: Interval | None) -> tuple[Verdict, ...]:
    """The verdicts on validation beside the intervals of the test split, in points, which may contradict them."""
    test = {"max_drop": (drop.low, drop.high)} | ({} if churn is None else {"max_churn": (churn.low, churn.high)})
    return tuple(one.model_copy(update={"test": test[one.name]}) if one.name in test else one for one in verdicts)


def check_showable(budget: Budget, validation: int) -> None:
    """See that a validation split of this many samples could ever show what the budget asks for.

    A student that answers every sample as the teacher does has the narrowest interval: its upper end is that of the rule
    of three.

    Raises: PlanError that says how many samples it takes.
    """
    limit = budget.drop
    if limit is None or limit.by == "point" or RULE_OF_THREE_POINTS / validation <= limit.points:
        return
    best = f"{RULE_OF_THREE_POINTS / validation:.3g}"
    asked = f"budget.max_drop asks for an upper end of at most {limit.points:g} points"
    if limit.points == 0:
        raise PlanError(
            f"{asked}, which no number of samples can show", do="ask for more than 0 points, or `by: point`"
        )
    least = math.ceil(RULE_OF_THREE_POINTS / limit.points)
    raise PlanError(
        f"{asked}, and {validation} validation samples show {best} at best, with every answer the teacher's own",
        do=f"give at least {least} validation samples, or write `max_drop: {limit.points:g}` to hold the point",
    )


def tolerance_seconds(minutes: float) -> float:
    """Within how many seconds a limit of so many minutes on a run's time is kept."""
    return max(TOLERANCE_SECONDS, TOLERANCE_FRACTION * 60 * minutes)


def known(count: int | None) -> int:
    """A count of a file that kdc built, whose graph is therefore known."""
    assert count is not None
    return count


def _latency(budget: Budget, latency: Latency, blocks_ns: BlocksNs) -> tuple[float, str]:
    """The figure in ms that a latency limit holds, and what it is."""
    if budget.percentile == 50:
        # A model that skips work has no typical run: its mean over the inputs is held.
        if latency.mean_high_ms is not None:
            return latency.mean_high_ms, "upper end of the mean's 95% interval"
        return latency.high_ms, "upper end of the median's 95% interval"
    interval = quantile_interval(blocks_ns, budget.percentile / 100, np.random.default_rng(0))
    if interval is None:
        raise TargetError(
            f"budget.percentile {budget.percentile:g} needs more samples than the {latency.n} measured",
            do="limit a lower percentile",
        )
    return interval.high / 1e6, f"upper end of p{budget.percentile:g}'s 95% interval"
