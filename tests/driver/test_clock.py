"""A run's time is counted over all its commands, and a limit on it ends the work."""

import json

import pytest

from kdc.core.observe import Note, silent
from kdc.driver.clock import Clock, TimeUpError


def test_the_next_command_goes_on_counting(tmp_path):
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"recipe": "a", "seconds": 100.0}))
    assert 100 <= Clock(path, "a", None).seconds < 101


def test_another_recipe_starts_from_nothing(tmp_path):
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"recipe": "a", "seconds": 100.0}))
    assert Clock(path, "b", None).seconds < 1


def test_the_count_survives(tmp_path):
    path = tmp_path / "clock.json"
    Clock(path, "a", None).write()
    assert json.loads(path.read_text())["recipe"] == "a"


def test_an_event_after_the_limit_ends_the_work_until_it_is_stopped(tmp_path):
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({"recipe": "a", "seconds": 61.0}))
    clock = Clock(path, "a", limit_minutes=1)
    emit = clock.watching(silent)
    with pytest.raises(TimeUpError, match="compile_minutes is 1"):
        emit(Note("x"))
    clock.stopped = True
    emit(Note("x"))


def test_a_limit_that_is_not_reached_lets_events_through(tmp_path):
    seen = []
    Clock(tmp_path / "clock.json", "a", limit_minutes=60).watching(seen.append)(Note("x"))
    assert seen == [Note("x")]
