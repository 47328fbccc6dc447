"""The loop teaches, repeats itself to the bit, and goes on where it was killed."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.errors import ModelError
from kdc.core.observe import Epoch, Event, silent
from kdc.distill.loop import train
from kdc.distill.objectives.features import hint
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.settings import HardLabels, Hints, SoftTargets, Training
from kdc.distill.teacher import predict, reached
from kdc.distill.teacher_answers import TeacherAnswers
from kdc.distill.views import view
from kdc.tasks.classification import Classification
from targets.device import load_device


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initialised(model: nn.Module, seed: int, size: float = 0.3) -> nn.Module:
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def split(n: int, seed: int) -> Split:
    return Split((torch.randn((n, 1, 6, 6), generator=seeded(seed)),), torch.arange(n) % 3)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    teacher = initialised(network(8), 1, size=1.0).eval().requires_grad_(False)
    data = Splits(
        split(96, 2), split(16, 3), split(48, 4), split(16, 5), "fingerprint",
        augment=lambda images, generator: images + 0.1 * torch.randn(images.shape, generator=generator),
    )  # fmt: skip
    return Context(
        step="test", device=load_device("cpu-ort"), task=Classification(), data=data, teacher=teacher, budget=Budget(),
        seed=0, work=tmp_path / "work", cache=tmp_path / "cache", emit=silent,
        teacher_cost=lambda: None, forecasts=lambda artifacts: [],
    )  # fmt: skip


def replaced(context: Context, **changes: object) -> Context:
    return dataclasses.replace(context, **changes)


SHORT = Training(epochs=3, batch=32, views=2, checkpoint_seconds=1e-6)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_student_comes_to_agree_with_its_teacher(context):
    student = initialised(network(4), 6)

    def distance() -> float:
        answers = (predict(m, context.data.validation) for m in (student, context.teacher))
        return float(soft_targets(*answers, temperature=1.0).mean())

    before = distance()
    longer = {"epochs": 40, "learning_rate": 2e-2, "checkpoint_seconds": 60.0, "objectives": (SoftTargets(),)}
    train(student, context, SHORT.model_copy(update=longer))
    assert distance() < 0.5 * before


def test_two_trainings_with_one_seed_are_the_same_to_the_bit(context, tmp_path):
    students = [train(initialised(network(4), 6), replaced(context, work=tmp_path / str(i)), SHORT) for i in range(2)]
    assert states_equal(*students)


def test_another_seed_is_another_training(context, tmp_path):
    students = [
        train(initialised(network(4), 6), replaced(context, work=tmp_path / str(i), seed=i), SHORT) for i in range(2)
    ]
    assert not states_equal(*students)


@pytest.mark.parametrize("killed_after", [1, 2, 4, 7])
def test_a_training_that_was_killed_ends_with_the_same_bytes(context, tmp_path, killed_after):
    whole = train(initialised(network(4), 6), replaced(context, work=tmp_path / "whole"), SHORT)

    class Killed(BaseException):
        pass

    student = initialised(network(4), 6)
    forwards = 0

    def kill(*_: object) -> None:
        nonlocal forwards
        forwards += student.training
        if forwards > killed_after:
            raise Killed

    handle = student.register_forward_pre_hook(kill)
    with pytest.raises(Killed):
        train(student, context, SHORT)
    handle.remove()
    again = train(initialised(network(4), 6), context, SHORT)
    assert states_equal(whole, again)


def up_and_down(context: Context, tmp_path: Path, name: str, **changes: object) -> tuple[list[float], float]:
    """The metric after each epoch of a training that goes up and down, and that of what comes out."""
    seen: list[float] = []
    own = replaced(
        context,
        work=tmp_path / name,
        emit=lambda event: seen.append(event.metric) if isinstance(event, Epoch) else None,
    )
    training = SHORT.model_copy(update={"epochs": 12, "learning_rate": 0.02, "ema": 0.0, **changes})
    student = train(initialised(network(4), 7), own, training)
    return seen, reached(student, own)


def test_the_best_epoch_on_validation_is_kept_where_that_is_asked_for(context, tmp_path):
    seen, last = up_and_down(context, tmp_path, "last")
    assert last == seen[-1] < max(seen)  # else this test shows nothing
    again, best = up_and_down(context, tmp_path, "best", keep="best")
    assert again == seen
    assert best == max(seen)


def test_the_best_epoch_is_the_same_after_a_kill(context, tmp_path):
    _, best = up_and_down(context, tmp_path, "whole", keep="best")

    def killed(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == 8:
            raise KeyboardInterrupt

    training = SHORT.model_copy(update={"epochs": 12, "learning_rate": 0.02, "ema": 0.0, "keep": "best"})
    own = replaced(context, work=tmp_path / "killed", emit=killed)
    with pytest.raises(KeyboardInterrupt):
        train(initialised(network(4), 7), own, training)
    student = train(initialised(network(4), 7), replaced(own, emit=silent), training)
    assert reached(student, own) == best


def test_a_finished_training_is_not_done_again(context):
    first = copy.deepcopy(train(initialised(network(4), 6), context, SHORT))
    seen: list[Event] = []
    second = train(initialised(network(4), 6), replaced(context, emit=seen.append), SHORT)
    assert states_equal(first, second)
    assert not [event for event in seen if isinstance(event, Epoch)]


def test_training_leaves_the_global_generator_and_the_teacher_alone(context):
    student = initialised(network(4), 6)
    before, teacher = torch.random.get_rng_state(), copy.deepcopy(context.teacher)
    train(student, context, SHORT)
    assert torch.equal(before, torch.random.get_rng_state())
    assert states_equal(teacher, context.teacher)
    assert not context.teacher.training


def test_hints_pair_stages_and_leave_no_hook_behind(context):
    student = initialised(network(4), 6)
    train(student, context, SHORT.model_copy(update={"objectives": (SoftTargets(), Hints(pairs=2))}))
    assert not any(module._forward_hooks for model in (student, context.teacher) for module in model.modules())


def test_hints_by_a_wrong_name_say_which(context):
    objectives = (Hints(layers={"4": "no.such"}),)
    with pytest.raises(ModelError, match=r"'no.such'"):
        train(initialised(network(4), 6), context, SHORT.model_copy(update={"objectives": objectives}))


def test_a_loss_that_is_not_finite_names_the_learning_rate(context):
    student = initialised(network(4), 6)
    with torch.no_grad():
        student[0].weight.fill_(math.nan)
    with pytest.raises(ModelError, match="learning_rate"):
        train(student, context, SHORT.model_copy(update={"objectives": (HardLabels(),)}))


def test_a_view_is_the_same_each_time_and_differs_from_the_next(context):
    first, again, other = (view(context.data, 0, number).samples.inputs[0] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stored_teacher_outputs_are_those_of_the_very_view(context):
    seen = view(context.data, 0, 1)
    for _ in range(2):  # computed, then from the cache
        with TeacherAnswers(context) as answers:
            found = answers.of(seen)[torch.arange(len(seen.samples))]
        assert torch.equal(found, predict(context.teacher, seen.samples))


def test_soft_targets_are_temperature_squared_times_the_divergence_of_the_softened_distributions():
    student, teacher = torch.randn((5, 4), generator=seeded(0)), torch.randn((5, 4), generator=seeded(1))
    p, q = (torch.softmax(logits.double() / 3, 1) for logits in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(soft_targets(student, teacher, 3.0).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", [lambda a, b: soft_targets(a, b, 2.0), hint])
def test_an_objective_gives_one_value_per_example_and_nothing_for_equal_tensors(objective):
    a = torch.randn((6, 5), generator=seeded(0))
    assert objective(a, a.roll(1, 0)).shape == (6,)
    torch.testing.assert_close(objective(a, a), torch.zeros(6), atol=1e-5, rtol=0)


def test_a_hint_does_not_depend_on_the_features_size():
    a, b = torch.randn((3, 7), generator=seeded(0)), torch.randn((3, 7), generator=seeded(1))
    torch.testing.assert_close(hint(100 * a, b), hint(a, 0.01 * b))
