"""What ships is proven faster and meets every limit; else the nearest is kept and the limit that binds is named."""

from dataclasses import dataclass, replace

import pytest

from kdc.core.budget import Budget, Cost, within
from kdc.core.errors import TargetError
from kdc.driver.select import Judged, excess, limits, select
from kdc.numerics.stats import Drop
from targets.latency import Latency
from targets.measured import Profile
from targets.ratio import Ratio


@dataclass
class Label:
    label: str


def judged(ratio: float, drop: float, verdict: str = "faster", size_mb: float = 0.1) -> Judged:
    latency = Latency(
        n=10, processes=5, median_ms=1 / ratio, low_ms=0.99 / ratio, high_ms=1.01 / ratio,
        p90_ms=None, p99_ms=None, load_ms=1, first_ms=1,
    )  # fmt: skip
    profile = Profile(
        path="x.onnx", sha256="0", size_mb=size_mb, latency=latency, peak_memory_mb=1, parameters=1, macs=1
    )
    band = Ratio(ratio=ratio, low=0.98 * ratio, high=1.02 * ratio, verdict=verdict)
    return Judged(Label("x"), profile, band, Drop(drop, drop - 1, drop + 1, None), [1 / ratio] * 10)


def between(students):
    def ratio_between(reference: int, candidate: int) -> Ratio:
        ratio = students[candidate].ratio.ratio / students[reference].ratio.ratio
        verdict = "no detectable difference" if abs(ratio - 1) < 0.02 else "faster" if ratio > 1 else "slower"
        return Ratio(ratio=ratio, low=ratio, high=ratio, verdict=verdict)

    return ratio_between


def chosen(students, **budget):
    return select(students, Budget(**budget), between(students), minutes=1)


def test_the_fastest_that_meets_every_limit_ships():
    assert chosen([judged(4, 0.1), judged(8, 0.5), judged(16, 3.0)], max_drop=1) == (1, True)


def test_a_slower_integer_student_leaves_the_float_one_to_ship():
    assert chosen([judged(8, 0.2), judged(7, 0.2)], max_drop=1) == (0, True)


def test_of_two_that_cannot_be_told_apart_the_more_accurate_ships():
    assert chosen([judged(8.0, 0.1), judged(8.05, 0.6)], max_drop=1) == (0, True)


@pytest.mark.parametrize("verdict", ["slower", "no detectable difference"])
def test_what_is_not_proven_faster_is_never_feasible(verdict):
    index, feasible = chosen([judged(1.5, 0.0, verdict)], max_drop=1)
    assert (index, feasible) == (0, False)


def test_without_a_feasible_one_the_nearest_is_kept():
    assert chosen([judged(2, 0.1), judged(4.8, 1.1)], max_drop=1, min_speedup=5) == (1, False)


def test_the_speed_up_is_held_by_the_lower_end_of_its_interval():
    (verdict,) = (v for v in limits(Budget(min_speedup=5), judged(5.05, 0), 0, 1) if v.name == "min_speedup")
    assert not verdict.met
    assert verdict.value == pytest.approx(4.949)


def test_the_latency_is_held_by_the_upper_end_of_its_interval():
    (verdict,) = (v for v in limits(Budget(latency_ms=1.0), judged(1.0, 0), 0, 1) if v.name == "latency_ms")
    assert not verdict.met


def test_a_cold_limit_is_held_by_the_cold_interval_alone():
    budget = Budget.model_validate({"latency_ms@cold": 2.0, "max_drop": None})
    hot = judged(1.0, 0)
    slow_hot = judged(0.1, 0)  # 10 ms

    def with_cold(one: Judged, high_ms: float) -> Judged:
        cold = one.profile.latency.model_copy(update={"median_ms": 1.9, "high_ms": high_ms})
        return replace(one, profile=one.profile.model_copy(update={"cold": cold}))

    for one in (hot, slow_hot):
        (met,) = limits(budget, with_cold(one, 1.99), 0, 1)
        assert (met.name, met.limit, met.value, met.met) == ("latency_ms@cold", 2.0, 1.99, True)
        (missed,) = limits(budget, with_cold(one, 2.01), 0, 1)
        assert not missed.met
    (verdict,) = limits(Budget(latency_ms=2.0, max_drop=None), with_cold(hot, 99), 0, 1)
    assert (verdict.name, verdict.met) == ("latency_ms", True)
    with pytest.raises(ValueError, match="no cold runs"):
        limits(budget, hot, 0, 1)


def test_a_forecast_is_held_to_the_cold_limit_with_its_headroom():
    budget = Budget.model_validate({"latency_ms@cold": 2.0})
    cost = Cost(latency_ms=99, size_mb=1, macs=1, parameters=1, cold_ms=1.7)
    assert within(cost, budget, lambda: cost, headroom=0.1)
    assert not within(cost, budget, lambda: cost, headroom=0.2)


def test_a_percentile_of_cold_runs_takes_as_many_as_of_hot_ones():
    budget = Budget.model_validate({"latency_ms@cold": 2.0, "percentile": 90, "max_drop": None})
    one = judged(1.0, 0)
    one = replace(one, profile=one.profile.model_copy(update={"cold": one.profile.latency}))
    samples = [1.0] * 89 + [3.0] * 11
    (verdict,) = limits(budget, replace(one, cold_samples_ms=samples), 0, 1)
    assert (verdict.value, verdict.met) == (3.0, False)
    with pytest.raises(TargetError, match="more samples than the 99 measured"):
        limits(budget, replace(one, samples_ms=samples, cold_samples_ms=samples[1:]), 0, 1)


def test_the_excess_is_the_share_by_which_a_limit_is_missed():
    missed = {v.name: excess(v) for v in limits(Budget(size_mb=0.1, max_drop=2), judged(2, 3, size_mb=0.15), 3, 1)}
    assert missed == {"size_mb": pytest.approx(0.5), "max_drop": pytest.approx(0.5)}


def emulated(one: Judged) -> Judged:
    latency = one.profile.latency.model_copy(update={"emulated": True})
    return replace(one, profile=one.profile.model_copy(update={"latency": latency}))


def test_an_emulated_time_meets_no_limit_however_small_it_is():
    budget = Budget(latency_ms=1000, min_speedup=1.1, peak_memory_mb=1000, size_mb=1, max_drop=1)
    met = {v.name: v.met for v in limits(budget, judged(10, 0.0), 0.0, 1)}
    assert all(met.values())
    verdicts = {v.name: v for v in limits(budget, emulated(judged(10, 0.0)), 0.0, 1)}
    assert {name for name, v in verdicts.items() if v.met} == {"size_mb", "max_drop"}
    assert {name for name, v in verdicts.items() if v.emulated} == {"latency_ms", "min_speedup", "peak_memory_mb"}
    assert excess(verdicts["latency_ms"]) == 0.0


def test_a_student_that_is_faster_by_emulation_only_is_not_proven_faster():
    assert chosen([judged(10, 0.0)]) == (0, True)
    assert chosen([emulated(judged(10, 0.0))]) == (0, False)
