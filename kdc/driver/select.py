"""Which candidate ships: of those that meet every limit and are proven faster, the fastest."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from kdc.core.budget import Budget, Verdict
from kdc.core.errors import TargetError
from kdc.driver.lowering import Candidate
from kdc.numerics.stats import Drop, percentile
from targets.latency import Latency
from targets.measured import Profile
from targets.ratio import Ratio


@dataclass(frozen=True)
class Judged:
    """A candidate with its measured cost and its drop against the teacher."""

    candidate: Candidate
    profile: Profile
    ratio: Ratio
    drop: Drop
    samples_ms: Sequence[float]
    cold_ratio: Ratio | None = None
    cold_samples_ms: Sequence[float] = ()
    churn: float | None = None


def limits(
    budget: Budget, judged: Judged, drop_points: float, minutes: float, churn: float | None = None
) -> list[Verdict]:
    """Every limit of the budget beside what was measured; `churn` is that of the split, where the task has it.

    The median latency, hot and cold each, is held by the upper end of its 95% interval and the speed-up by the lower end
    of its own, so that a limit that is met is met beyond the noise. What was measured on an emulated processor, times and
    the process's memory, meets no limit.
    """
    verdicts: list[Verdict] = []
    emulated = judged.profile.latency.emulated

    def hold(name: str, limit: float, value: float, met: bool, of_emulator: bool = False) -> None:
        verdicts.append(Verdict(name=name, limit=limit, value=value, met=met and not of_emulator, emulated=of_emulator))

    def at_most(name: str, limit: float | None, value: float, of_emulator: bool = False) -> None:
        if limit is not None:
            hold(name, limit, value, value <= limit, of_emulator)

    if budget.latency_ms is not None:
        at_most("latency_ms", budget.latency_ms, _latency(budget, judged.profile.latency, judged.samples_ms), emulated)
    if budget.latency_ms_cold is not None:
        if judged.profile.cold is None:
            raise ValueError("the budget limits the cold latency, and no cold runs were measured")
        cold_ms = _latency(budget, judged.profile.cold, judged.cold_samples_ms)
        at_most("latency_ms@cold", budget.latency_ms_cold, cold_ms, emulated)
    if budget.min_speedup is not None:
        low = judged.ratio.low
        hold("min_speedup", budget.min_speedup, low, low >= budget.min_speedup, emulated)
    at_most("size_mb", budget.size_mb, judged.profile.size_mb)
    at_most("macs", budget.macs, known(judged.profile.macs))
    at_most("peak_memory_mb", budget.peak_memory_mb, judged.profile.peak_memory_mb, emulated)
    at_most("max_drop", budget.max_drop, drop_points)
    if churn is not None:
        at_most("max_churn", budget.max_churn, churn)
    at_most("compile_minutes", budget.compile_minutes, minutes)
    return verdicts


def known(count: int | None) -> int:
    """A count of a file that kdc built, whose graph is therefore known."""
    assert count is not None
    return count


def excess(verdict: Verdict) -> float:
    """By what share of the limit it is missed; 0 where it is met."""
    if verdict.met:
        return 0.0
    if verdict.name == "min_speedup":
        missed = verdict.limit / max(verdict.value, 1e-9) - 1
    else:
        missed = verdict.value / verdict.limit - 1 if verdict.limit else verdict.value + 1
    return max(missed, 0.0)  # an emulated value may be within the limit that it does not meet


def select(
    judged: Sequence[Judged],
    budget: Budget,
    ratio_between: Callable[[int, int], Ratio],
    minutes: float,
    barred: Container[int] = (),
) -> tuple[int, bool]:
    """The index of the candidate that ships, and whether it meets every limit on the validation split.

    Of two that cannot be told apart in speed the one with the better metric ships: a float student where int8 gains
    nothing. Where none is feasible, the one that misses its limits by the least in sum is the nearest. What is barred
    does not ship.
    """
    verdicts = [limits(budget, one, one.drop.points, minutes, one.churn) for one in judged]
    open_ = [i for i in range(len(judged)) if i not in barred] or list(range(len(judged)))
    feasible = [i for i in open_ if proven(judged[i]) and all(v.met for v in verdicts[i])]
    if not feasible:
        return min(open_, key=lambda i: (sum(map(excess, verdicts[i])), -judged[i].ratio.ratio)), False
    best = max(feasible, key=lambda i: judged[i].ratio.ratio)
    for i in sorted(feasible, key=lambda i: judged[i].drop.points):
        if judged[i].drop.points < judged[best].drop.points and ratio_between(best, i).verdict == NO_DIFFERENCE:
            return i, True
    return best, True


def proven(judged: Judged) -> bool:
    """Whether the candidate is faster than the teacher, by the device's own processor."""
    return judged.ratio.verdict == "faster" and not judged.profile.latency.emulated


NO_DIFFERENCE = "no detectable difference"


def _latency(budget: Budget, latency: Latency, samples_ms: Sequence[float]) -> float:
    if budget.percentile == 50:
        # A model that skips work has no typical run: its mean over the inputs is held.
        return latency.high_ms if latency.mean_high_ms is None else latency.mean_high_ms
    value = percentile(samples_ms, budget.percentile / 100)
    if value is None:
        raise TargetError(
            f"budget.percentile {budget.percentile:g} needs more samples than the {len(samples_ms)} measured",
            do="limit a lower percentile",
        )
    return value
