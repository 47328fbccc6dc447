"""The student that ships holds every limit on the validation split; else the nearest is kept."""

import pytest
from judging import emulated, judged

from kdc.core.budget import Budget
from kdc.driver.limits import limits
from kdc.driver.select import excess, select
from targets.ratio import Ratio


def between(students):
    def ratio_between(reference: int, candidate: int) -> Ratio:
        ratio = students[candidate].ratio.ratio / students[reference].ratio.ratio
        verdict = "no detectable difference" if abs(ratio - 1) < 0.02 else "faster" if ratio > 1 else "slower"
        return Ratio(ratio=ratio, low=ratio, high=ratio, verdict=verdict)

    return ratio_between


def chosen(students, **budget):
    verdicts = [limits(Budget(**budget), one, minutes=1) for one in students]
    index = select(students, verdicts, between(students))
    return index, all(one.met for one in verdicts[index])


def test_the_fastest_that_meets_every_limit_ships():
    assert chosen([judged(4, 0.1), judged(8, 0.5), judged(16, 3.0)], max_drop=1) == (1, True)


def test_a_slower_integer_student_leaves_the_float_one_to_ship():
    assert chosen([judged(8, 0.2), judged(7, 0.2)], max_drop=1) == (0, True)


def test_of_two_that_cannot_be_told_apart_the_more_accurate_ships():
    assert chosen([judged(8.0, 0.1), judged(8.05, 0.6)], max_drop=1) == (0, True)


def test_without_a_feasible_one_the_nearest_is_kept():
    assert chosen([judged(2, 0.1), judged(4.8, 1.1)], max_drop=1, min_speedup=5) == (1, False)


def test_a_student_that_fails_on_validation_does_not_ship_though_it_is_the_only_one():
    assert chosen([judged(9, 2.22)], max_drop=1) == (0, False)


@pytest.mark.parametrize("half", [0.0, 0.6])
def test_what_is_not_proven_faster_does_not_ship_where_speed_or_nothing_is_limited(half):
    slow = judged(1.0 if half == 0 else 1.5, half=half)
    assert chosen([slow]) == (0, False)
    assert chosen([slow], latency_ms=100) == (0, False)
    assert chosen([slow], min_speedup=1.001, size_mb=1) == (0, False)


@pytest.mark.parametrize("limit", [{"size_mb": 1}, {"macs": 10}, {"peak_memory_mb": 10}])
def test_where_only_another_cost_is_limited_equal_speed_ships_and_slower_does_not(limit):
    assert chosen([judged(1.0)], **limit) == (0, True)
    assert chosen([judged(0.98, half=0.03)], **limit) == (0, True)
    assert chosen([judged(0.9)], **limit) == (0, False)


def test_what_is_barred_ships_only_where_all_are():
    students = [judged(4, 0.1), judged(8, 0.5)]
    verdicts = [limits(Budget(), one, 1) for one in students]
    assert select(students, verdicts, between(students), barred={1}) == 0
    assert select(students, verdicts, between(students), barred={0, 1}) == 1


def test_the_excess_is_the_fraction_by_which_a_limit_is_missed():
    missed = {v.name: excess(v) for v in limits(Budget(size_mb=0.1, max_drop=2), judged(2, 3, size_mb=0.15), 1)}
    assert missed == {"size_mb": pytest.approx(0.5), "max_drop": pytest.approx(0.5), "not_slower": 0.0}


def test_a_student_that_is_faster_by_emulation_only_is_not_proven_faster():
    assert chosen([judged(10, 0.0)]) == (0, True)
    assert chosen([emulated(judged(10, 0.0))]) == (0, False)
