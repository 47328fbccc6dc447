"""A training whose time is limited: its schedule is fitted, its best state is kept, and nothing of it depends on luck."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.deadline import Deadline, given_up_in, without_other_limits
from kdc.core.observe import Epoch, Note
from kdc.distill import loop
from kdc.distill.averaging import Best
from kdc.distill.fitting import LOOK_SECONDS, SCHEDULE, SPARE, Fitting
from kdc.distill.loop import train
from kdc.distill.settings import Training
from kdc.distill.team import Team

TRAINING = Training(epochs=30, batch=32, learning_rate=1e-2)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def limited(context: Context, clock: Clock, at: float) -> Context:
    return dataclasses.replace(context, deadline=Deadline(clock, at, at / 60, context.work))


def fitting(context: Context, clock: Clock, epochs: int, per_epoch: int) -> Fitting:
    return Fitting(context, TRAINING, epochs * per_epoch, per_epoch, Team(), now=clock)


def trained(fit: Fitting, clock: Clock, step_seconds, evaluation_seconds: float = 0.0) -> int:
    """The loop's calls, where step number n takes `step_seconds(n)`; the last step."""
    step = 0
    fit.begin(step)
    while step < fit.steps:
        fit.seen(step, 0.0)
        for _ in range(fit.per_epoch - step % fit.per_epoch):
            clock.seconds += step_seconds(step)
            step += 1
            fit.after(step)
            if step >= fit.steps:
                break
        clock.seconds += evaluation_seconds
        fit.evaluated(step, evaluation_seconds)
    return step


@pytest.mark.parametrize("per_epoch", [1, 3, 40, 5000])
@pytest.mark.parametrize("step_seconds", [0.01, 0.3, 3.0])
def test_a_training_that_does_not_fit_is_fitted_and_never_passes_its_deadline(small_context, per_epoch, step_seconds):
    clock = Clock()
    fit = fitting(limited(small_context, clock, 60.0), clock, 10_000, per_epoch)
    step = trained(fit, clock, lambda _: step_seconds, evaluation_seconds=step_seconds)
    assert fit.shortened
    assert step == fit.steps > 0
    assert clock.seconds <= 60.0 + 2 * step_seconds
    assert clock.seconds > 0.85 * 60.0 - 4 * step_seconds - LOOK_SECONDS  # and what there was is used


def test_the_schedule_is_fitted_in_the_first_steps_so_that_the_rate_still_falls_to_its_end(small_context):
    clock = Clock()
    fit = fitting(limited(small_context, clock, 100.0), clock, 100, 50)
    totals = []

    def seconds(step: int) -> float:
        totals.append(fit.steps)
        return 0.1

    trained(fit, clock, seconds)
    first = next(step for step, total in enumerate(totals) if total < 5000)
    assert first * 0.1 <= LOOK_SECONDS + 0.3
    assert totals[first] == pytest.approx(SPARE * 100 / 0.1, rel=0.05)
    assert totals[-1] == len(totals)


def test_a_machine_that_becomes_slower_ends_in_time_and_one_that_becomes_faster_uses_it(small_context, tmp_path):
    clock = Clock()
    slower = fitting(limited(small_context, clock, 60.0), clock, 1000, 20)
    trained(slower, clock, lambda step: 0.05 if clock.seconds < 20 else 0.5)
    assert clock.seconds <= 61.0
    other, clock = dataclasses.replace(small_context, work=tmp_path / "other"), Clock()
    faster = fitting(limited(other, clock, 60.0), clock, 10_000, 20)
    trained(faster, clock, lambda step: 0.5 if clock.seconds < 10 else 0.05)
    assert 50.0 < clock.seconds <= 61.0
    assert faster.steps > 60 / 0.5


def test_a_limit_that_does_not_bind_changes_no_byte_and_leaves_no_trace(small_context, tmp_path):
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    begun = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    training = TRAINING.model_copy(update={"epochs": 3})
    free = dataclasses.replace(small_context, work=tmp_path / "free")
    state = train(student, free, training).state_dict()
    expected = {name: tensor.clone() for name, tensor in state.items()}
    student.load_state_dict(begun)
    wide = limited(small_context, Clock(), 1e6)
    found = train(student, wide, training).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert given_up_in(wide.work) == (None, {})
    assert not (wide.work / SCHEDULE).exists()


def stopped(context: Context, monkeypatch: pytest.MonkeyPatch, metrics: list[float], at: int) -> nn.Module:
    """A training of four epochs whose validation metrics are these and whose time is over behind epoch `at`."""
    clock, events = Clock(), []

    def emit(event: object) -> None:
        events.append(event)
        if isinstance(event, Epoch) and event.epoch == at:
            clock.seconds = 100.0

    told = iter(metrics)
    monkeypatch.setattr(loop, "reached", lambda model, own: next(told))
    own = dataclasses.replace(limited(context, clock, 50.0), emit=emit)
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    made = train(student, own, TRAINING.model_copy(update={"epochs": 4}))
    assert [event.epoch for event in events if isinstance(event, Epoch)] == list(range(1, at + 1))
    assert any("ended after" in event.text for event in events if isinstance(event, Note))
    return made


def test_the_best_state_on_validation_is_what_a_training_gives_whose_time_is_over(small_context, monkeypatch, tmp_path):
    torch.manual_seed(0)
    one = dataclasses.replace(small_context, work=tmp_path / "one")
    best = stopped(one, monkeypatch, [70.0, 90.0, 80.0], at=3)
    torch.manual_seed(0)
    two = dataclasses.replace(small_context, work=tmp_path / "two")
    at_two = stopped(two, monkeypatch, [70.0, 90.0], at=2)
    for name, tensor in best.state_dict().items():
        assert torch.equal(tensor, at_two.state_dict()[name])


def test_a_training_that_is_gone_on_with_behind_its_deadline_gives_its_best_checkpoint(small_context, monkeypatch):
    torch.manual_seed(0)
    best = stopped(small_context, monkeypatch, [70.0, 90.0, 80.0], at=3)
    monkeypatch.setattr(loop, "reached", lambda model, own: pytest.fail("nothing is trained any more"))
    (small_context.work / SCHEDULE).unlink()  # as where the kill came before the clock was asked
    clock = Clock()
    clock.seconds = 60.0
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    again = train(student, limited(small_context, clock, 50.0), TRAINING.model_copy(update={"epochs": 4}))
    assert all(torch.equal(t, best.state_dict()[n]) for n, t in again.state_dict().items())


def test_where_no_time_is_left_nothing_is_trained_and_it_is_said(small_context):
    events, clock = [], Clock()
    context = dataclasses.replace(limited(small_context, clock, 0.0), emit=events.append)
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    found = train(student, context, TRAINING.model_copy(update={"calibrate": False})).state_dict()
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert any("the training ended after 0 of 30 epochs" in event.text for event in events if isinstance(event, Note))


def test_a_teacher_whose_answers_would_take_the_time_is_asked_batch_by_batch(small_context, monkeypatch):
    events, clock = [], Clock()
    monkeypatch.setattr("kdc.distill.teacher_answers.TeacherAnswers.foretold", lambda self, view: 40.0)
    monkeypatch.setattr(
        "kdc.distill.teacher_answers.TeacherAnswers.of", lambda self, view: pytest.fail("the whole view was asked")
    )
    context = dataclasses.replace(limited(small_context, clock, 60.0), emit=events.append)
    train(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), context, TRAINING.model_copy(update={"epochs": 2}))
    assert any("batch by batch" in event.text for event in events if isinstance(event, Note))
    assert json.loads((context.work / SCHEDULE).read_text())["live"] is True


def test_the_parts_of_a_deadline_never_add_up_to_more_than_it(tmp_path):
    clock = Clock()
    whole = Deadline(clock, 100.0, 1.0, tmp_path)
    sizes = [3.0, 1.0, 0.0, 6.0]
    for place, size in enumerate(sizes):
        part = whole.part(size, sum(sizes[place + 1 :]))
        assert part.at <= whole.at
        assert part.left() == pytest.approx(10 * size)
        clock.seconds += part.left()
    assert clock.seconds == pytest.approx(100.0)
    assert whole.part(1, 1).left() == 0.0


def test_a_deadline_sets_time_aside_but_leaves_half(tmp_path):
    clock = Clock()
    deadline = Deadline(clock, 100.0, 1.0, tmp_path)
    assert deadline.before(30).left() == 70
    assert deadline.before(1000).left() == 50
    assert Deadline(clock, math.inf, 1.0, tmp_path).part(1, 2).before(5).left() == math.inf


def test_what_was_given_up_once_is_given_up_by_who_goes_on_and_in_another_process(small_context):
    clock = Clock()
    context = limited(small_context, clock, 10.0)
    assert not context.out_of_time("look 1", "two looks")
    clock.seconds = 11.0
    assert context.out_of_time("look 2", "two looks")
    follower = dataclasses.replace(context, deadline=Deadline(lambda: 0.0, math.inf, 1.0, context.work))
    assert not follower.out_of_time("look 1", "two looks")
    assert follower.out_of_time("look 2", "two looks")


def test_what_another_limit_shortened_is_not_gone_on_with(small_context):
    context = limited(small_context, Clock(), 0.0)
    context.give_up("schedule", "the training was fitted")
    without_other_limits(context.work, 0.0)
    assert context.work.exists()
    without_other_limits(context.work, 2.0)
    assert not context.work.exists()
    context.give_up("schedule", "the training was fitted")
    without_other_limits(context.work, None)
    assert not context.work.exists()


def test_of_equal_states_the_latest_is_the_best():
    best = Best()
    for metric, value in ((1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (1.5, 4.0)):
        best.take(metric, {"w": torch.tensor(value)})
    assert best.state is not None
    assert best.state["w"] == 3.0
