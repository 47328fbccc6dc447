"""A run's time is counted over all its commands, and what is left of its limit is divided."""

import json
from types import SimpleNamespace

import pytest
import torch

from kdc.core.data import Split, Splits
from kdc.core.observe import Note, silent
from kdc.driver.clock import EVALUATE, LOWER, RUN, TIME, Clock, TimeUpError
from kdc.driver.limits import TOLERANCE_SECONDS
from kdc.driver.timetable import END_SECONDS, MEASURE_SHARE, STUDENT_SHARE, Timetable
from targets.settings import Settings


class Seconds:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(path, seconds: float) -> None:
    path.write_text(json.dumps({"recipe": "a", "seconds": seconds}))


def test_the_next_command_goes_on_counting(tmp_path):
    path = tmp_path / "clock.json"
    written(path, 100.0)
    assert Clock(path, "a", None, now=Seconds()).seconds == 100
    assert Clock(path, "a", 3, now=Seconds()).left == 80
    assert Clock(path, "b", None, now=Seconds()).seconds == 0


def test_the_time_since_the_program_began_counts(tmp_path):
    assert Clock(tmp_path / "clock.json", "a", None, 990.0, now=Seconds()).seconds == 10


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"recipe": "a", "seconds": "x"}', '{"recipe": "a", "seconds": 1, "took": 3}']
)
def test_a_damaged_count_starts_from_nothing(tmp_path, text):
    path = tmp_path / "clock.json"
    path.write_text(text)
    clock = Clock(path, "a", None, now=Seconds())
    assert clock.seconds <= 1
    assert clock.took("lower") == 0


def test_what_was_timed_and_decided_survives(tmp_path):
    path, seconds = tmp_path / "clock.json", Seconds()
    clock = Clock(path, "a", 1, now=seconds)
    with clock.timed("lower"):
        seconds.now += 4
    with clock.timed("lower"):
        seconds.now += 1
    assert clock.decided("measuring", lambda: 5) == 5
    again = Clock(path, "a", 1, now=seconds)
    assert again.took("lower") == 4
    assert again.decided("measuring", lambda: 6) == 5
    assert again.seconds == 5


def test_what_is_expected_holds_until_it_was_timed(tmp_path):
    seconds = Seconds()
    clock = Clock(tmp_path / "clock.json", "a", 1, now=seconds)
    clock.expect("lower", 9)
    assert clock.took("lower") == 9
    with clock.timed("lower"):
        seconds.now += 4
    assert clock.took("lower") == 4
    clock.expect("evaluate", 9)
    clock.write()
    assert Clock(tmp_path / "clock.json", "a", 1, now=seconds).took("evaluate") == 0


def test_an_event_after_the_limit_ends_a_run_that_has_nothing_to_finish(tmp_path):
    path = tmp_path / "clock.json"
    written(path, 61.0)
    clock = Clock(path, "a", limit_minutes=1, now=Seconds())
    with pytest.raises(TimeUpError, match="compile_minutes is 1"):
        clock.watching(silent)(Note("x"))
    clock.ends = False
    clock.watching(silent)(Note("x"))


def splits(validation: int, test: int) -> Splits:
    one = Split((torch.zeros(1, 1),), torch.zeros(1, dtype=torch.int64))
    seen = [Split((torch.zeros(n, 1),), torch.zeros(n, dtype=torch.int64)) for n in (validation, test)]
    return Splits(one, one, seen[0], seen[1], "")


def planned(*epochs: float, kind: str = "prune") -> list:
    return [SimpleNamespace(settings=SimpleNamespace(kind=kind, training_epochs=lambda e=e: e)) for e in epochs]


def table(
    tmp_path, minutes, passes, *, lower=2.0, evaluate=1.0, look=3.0, cold=False
) -> tuple[Timetable, Seconds, Clock]:
    seconds = Seconds()
    clock = Clock(tmp_path / "clock.json", "a", minutes, now=seconds)
    for what, took in ((LOWER, lower), (RUN, 0.7 * evaluate), (TIME, look)):
        with clock.timed(what):
            seconds.now += took
    with clock.timed(EVALUATE):
        seconds.now += evaluate
    settings = Settings(cold_seconds=20.0 if cold else 5.0)
    return Timetable(clock, passes, splits(100, 200), settings, cold), seconds, clock


@pytest.mark.parametrize("minutes", [0.5, 1, 3, 10, 60, 600])
@pytest.mark.parametrize("epochs", [(30,), (30, 3), (1, 1, 1), (0, 300, 5, 3)])
@pytest.mark.parametrize("lower", [0.2, 2.0, 9.0])
@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(("evaluate", "share"), [(1.0, 1.0), (20.0, STUDENT_SHARE)])
def test_the_parts_of_a_run_never_pass_its_limit(tmp_path, minutes, epochs, lower, cold, evaluate, share):
    """Where each pass takes all that it is given, and all else what it was seen to take; or it is refused at once.

    `share` is a student's of what the teacher takes to be judged.
    """
    times, seconds, clock = table(tmp_path, minutes, planned(*epochs), lower=lower, cold=cold, evaluate=evaluate)
    try:
        times.check()
    except TimeUpError:
        assert minutes <= 1
        assert lower == 9.0 or evaluate == 20.0
        return
    made = 0
    for number in range(1, len(epochs) + 1):
        if times.leaves_out(made):
            break
        deadline = times.deadline(number, made, tmp_path)
        assert deadline is not None
        seconds.now += deadline.left()
        made += 1
        seconds.now += clock.took(LOWER) + share * clock.took(EVALUATE)
    measuring = times.measuring(1 + made)
    start, process = times._start(), times._process(1 + made)
    seconds.now += start * (1 + made)
    seconds.now += max(3 * process, measuring.seconds + process)
    if measuring.cold_seconds:
        seconds.now += max(3 * process, measuring.cold_seconds + process)
    seconds.now += (1 + share) * 2 * clock.took(RUN) + END_SECONDS  # the test split is twice the validation split
    tolerance = max(15.0, 6 * minutes)
    assert made >= 1
    assert clock.seconds <= 60 * minutes + tolerance


def test_time_is_divided_by_epochs_and_what_a_pass_leaves_goes_to_the_next(tmp_path):
    times, seconds, _ = table(tmp_path, 60, planned(30, 9))
    whole = times.for_passes(2, 0)
    first = times.deadline(1, 0, tmp_path)
    assert first is not None
    assert first.left() == pytest.approx((whole - times.model_seconds) * 31 / 41)
    seconds.now += 10
    second = times.deadline(2, 1, tmp_path)
    assert second is not None
    # The first student's lowering, and its judging for half a second, were in these 10.
    assert second.left() == pytest.approx(whole - 10 + 2.5)


def test_the_last_passes_are_left_out_where_all_would_starve(tmp_path):
    times, seconds, _ = table(tmp_path, 1, planned(30, 3, 3))
    for made in range(2):
        assert not times.leaves_out(made)
        deadline = times.deadline(1 + made, made, tmp_path)
        assert deadline is not None
        assert deadline.left() > 2
        seconds.now += deadline.left() + 3
    assert times.leaves_out(2)
    assert not times.leaves_out(0)  # a run without a student has nothing to report


def test_without_a_limit_nothing_changes(tmp_path):
    times, _, _ = table(tmp_path, None, planned(30, 3))
    assert times.deadline(1, 0, tmp_path) is None
    assert times.measuring(3) == times.whole
    assert times.timed_inputs(1000, 5.0) == 1000
    assert not times.leaves_out(1)
    times.check()


def test_a_limit_that_is_far_away_measures_as_without_one(tmp_path):
    times, _, _ = table(tmp_path, 60, planned(30, 3))
    assert times.measuring(3) == times.whole


def test_measuring_has_at_most_a_share_of_a_short_limit_but_what_a_verdict_needs(tmp_path):
    times, _, _ = table(tmp_path, 2, planned(30))
    assert times.to_measure(2) == MEASURE_SHARE * 120
    times, _, _ = table(tmp_path, 0.2, planned(30))
    assert times.to_measure(2) == times._least_measuring(2)


def test_a_limit_too_short_for_any_student_is_refused_at_once_with_what_it_takes(tmp_path):
    times, _, _ = table(tmp_path, 0.05, planned(30), lower=20, evaluate=10)
    with pytest.raises(TimeUpError, match=r"compile_minutes is 0.05.*to lower, measure and report.*\n.*allow"):
        times.check()
    enough = (times.clock.seconds + times.least() - TOLERANCE_SECONDS / 2 + 1) / 60
    times.clock.limit_minutes = enough
    times.check()
    assert times.least() > 30 + END_SECONDS
    with pytest.raises(TimeUpError, match=r"to judge the teacher, and to lower, measure and report"):
        times.check(teacher_seconds=20)
