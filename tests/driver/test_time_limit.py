"""Whole runs under `compile_minutes`: they end in time with a student and a report, and what was shortened is known."""

import json
import shutil
import time

import pytest

from kdc.core.observe import Note, Progress, StepStarted
from kdc.driver.clock import TimeUpError
from kdc.driver.compress import compress
from kdc.driver.evaluate import Evaluation
from kdc.driver.recipe import load_recipe
from kdc.driver.why import why
from passes import PASSES

pytestmark = pytest.mark.slow
LIMITS = (0.5, 1.5, 4)  # minutes
LONG = "passes=[{prune: {keep_macs: 0.2, alignment: 4, training: {epochs: 10000, batch: 32}}}, quantize]"


def recipe(folder, *settings):
    return load_recipe(folder / "recipe.yaml", {}, settings, PASSES)


def timed(folder, name, *settings):
    """A run under the shortest of some limits that is not refused: its limit, report, notes and seconds, and its folder.

    A refusal must be in time as well; only a machine that is busy with other work gives one here.
    """
    for minutes in LIMITS:
        out, began, told = folder / f"{name}-{minutes}", time.monotonic(), []
        try:
            report = compress(recipe(folder, f"budget.compile_minutes={minutes}", *settings), out, told.append)
        except TimeUpError:
            assert in_time(time.monotonic() - began, minutes)
            continue
        seconds = time.monotonic() - began
        return minutes, report, [event.text for event in told if isinstance(event, Note)], seconds, out
    pytest.skip(f"this machine is too busy for any student within {LIMITS[-1]} minutes")


def in_time(seconds, minutes):
    return seconds <= 60 * minutes + max(15.0, 6 * minutes)


def test_a_teacher_too_slow_for_the_limit_is_told_by_its_first_samples_and_not_after_all_of_them(shapes, monkeypatch):
    seen, torch_seconds = [], Evaluation.torch_seconds

    def slow(self, *arguments):
        seen.append(torch_seconds(self, *arguments))
        return 1e3

    monkeypatch.setattr(Evaluation, "torch_seconds", slow)
    told = []
    with pytest.raises(TimeUpError, match="to judge the teacher"):
        compress(recipe(shapes, "budget.compile_minutes=10", LONG), shapes / "run", told.append)
    assert 0 < seen[0] < 60
    assert not [event for event in told if isinstance(event, Progress | StepStarted)]
    assert not (shapes / "run" / "student.onnx").exists()


def test_a_training_far_too_long_ends_in_time_is_told_and_is_never_served_to_another_limit(shapes):
    minutes, report, _, seconds, out = timed(shapes, "run", LONG)
    assert in_time(seconds, minutes), seconds
    assert (out / "student.onnx").exists()
    assert any(f"of 10000 epochs, by compile_minutes {minutes:g}" in note for note in report.notes)
    assert report.steps[0].findings["compile_minutes"]
    (limit,) = [verdict for verdict in report.budget if verdict.name == "compile_minutes"]
    assert limit.value * 60 == pytest.approx(seconds, abs=15)
    same = recipe(shapes, LONG, f"budget.compile_minutes={minutes}")
    again = compress(same, out)  # all of it is stored, measuring too, though the time is over
    assert again.student.sha256 == report.student.sha256
    assert again.speedup == report.speedup
    (first,) = why(recipe(shapes, LONG, "budget.compile_minutes=30"), out, "prune")
    assert not first.stored
    assert first.changes == (f"what is stored was shortened to fit into compile_minutes {minutes:g}",)
    assert all(reason.stored for reason in why(same, out, "prune"))


def test_a_search_whose_budget_lies_below_its_smallest_member_ends_in_time_with_that_member_and_a_report(shapes):
    space = "{family: plain, depth: [1, 3], channels: [4, 8]}"
    passes = f"passes=[{{search: {{spaces: [{space}], training: {{epochs: 10000, batch: 32}}}}}}]"
    minutes, report, notes, seconds, out = timed(shapes, "run", passes, "budget.macs=10")
    assert in_time(seconds, minutes), seconds
    assert not report.met
    assert any("no student of these spaces meets the budget" in note for note in notes)
    assert report.steps[0].findings["nearest"]
    assert (out / "student.onnx").exists()


def test_a_limit_that_does_not_bind_gives_the_bytes_and_the_keys_of_a_run_without_one(shapes):
    names = []
    for name, settings in (("free", ()), ("wide", ("budget.compile_minutes=600",))):
        compress(recipe(shapes, "passes=[{prune: {keep_macs: 0.2, training: {epochs: 1}}}]", *settings), shapes / name)
        store = shapes / name / ".kdc" / "store"
        names.append(sorted(path.name for path in store.iterdir() if path.name.startswith("prune")))
    assert names[0] == names[1]
    assert (shapes / "free" / "student.onnx").read_bytes() == (shapes / "wide" / "student.onnx").read_bytes()


def test_a_run_that_is_gone_on_with_when_its_time_is_over_finishes_from_the_best_checkpoint(shapes):
    class Killed(BaseException):
        pass

    out, settings = shapes / "run", (LONG.replace("epochs: 10000", "epochs: 10000, checkpoint_seconds: 0.001"),)
    epochs = 0

    def kill(event):
        nonlocal epochs
        epochs += type(event).__name__ == "Epoch"
        if epochs == 3:
            raise Killed

    limit = "budget.compile_minutes=5"
    with pytest.raises(Killed):
        compress(recipe(shapes, limit, *settings), out, kill)
    clock = out / ".kdc" / "clock.json"
    clock.write_text(json.dumps({**json.loads(clock.read_text()), "seconds": 301.0}))
    told = []
    report = compress(recipe(shapes, limit, *settings), out, told.append)
    assert not any(type(event).__name__ == "Epoch" for event in told)
    assert any("the training ended after" in note for note in report.notes)
    assert report.student.metric.points > 30
    shutil.rmtree(out)


def test_a_limit_shorter_than_loading_is_refused_before_anything_is_trained(shapes):
    told = []
    with pytest.raises(TimeUpError, match=r"compile_minutes is 0.0001"):
        compress(recipe(shapes, "budget.compile_minutes=0.0001", LONG), shapes / "run", told.append)
    assert not any(type(event).__name__ == "Epoch" for event in told)
