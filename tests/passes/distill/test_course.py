"""A course of trainings: who teaches whom, what is kept, and that a killed one goes on where it was."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import passes.distill.course as course
from kdc.core.artifact import Artifact
from kdc.core.budget import Budget
from kdc.core.contract import FINDINGS, Context
from kdc.core.data import Split, Splits
from kdc.core.deadline import GIVEN_UP, Deadline
from kdc.core.errors import ModelError
from kdc.core.observe import Epoch, Note
from kdc.core.spec import TensorSpec
from kdc.distill.settings import HardLabels, Training
from kdc.tasks.classification import Classification
from passes.distill import Distill
from targets.device import load_device

SHORT = Training(epochs=1, batch=32)
SPECS = (TensorSpec(name="x", shape=("batch", 1, 6, 6)),), (TensorSpec(name="logits", shape=("batch", 3)),)


def network(width: int, seed: int) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture
def events() -> list[object]:
    return []


@pytest.fixture
def context(tmp_path: Path, events: list[object]) -> Context:
    generator = torch.Generator().manual_seed(1)

    def split(n: int) -> Split:
        return Split((torch.randn((n, 1, 6, 6), generator=generator),), torch.arange(n) % 3)

    return Context(
        step="distill", device=load_device("cpu-ort"), task=Classification(),
        data=Splits(split(64), split(16), split(32), split(16), "fingerprint"),
        teacher=network(64, 1).requires_grad_(False), budget=Budget(), seed=0, work=tmp_path / "work",
        cache=tmp_path / "cache", emit=events.append, teacher_cost=lambda: None, forecasts=lambda artifacts: [],
    )  # fmt: skip


def student() -> Artifact[nn.Module]:
    return Artifact(network(4, 2), *SPECS)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, nn.Module, torch.Tensor, Training]]:
    """Every training of a course: its name, its teacher, the student's first weights, its settings."""
    taken = []

    def recorded(model: nn.Module, own: Context, training: Training) -> nn.Module:
        taken.append((own.step, own.teacher, model[0].weight.detach().clone(), training))
        return train(model, own, training)

    train = course.train
    monkeypatch.setattr(course, "train", recorded)
    monkeypatch.setattr("passes.distill.assistants.train", recorded)
    return taken


def width(model: nn.Module) -> int:
    return model[0].out_channels


def test_without_a_course_there_is_one_training_and_its_teacher_is_the_recipes(context, lessons):
    Distill(training=SHORT).tune(student(), context)
    ((step, teacher, _, _),) = lessons
    assert step == "distill"
    assert teacher is context.teacher


KINDS = {
    "assistants": {"assistants": {"keep_macs": (0.5, 0.1), "training": SHORT}},
    "trials": {"assistants": {"candidates": 2, "trial_epochs": 1}},
    "stages": {"stages": (SHORT, SHORT)},
    "generations": {"generations": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_course_whose_time_is_over_ends_without_an_epoch_and_one_with_time_is_as_without_a_limit(
    context, events, tmp_path, kind
):
    settings = Distill(training=SHORT, **KINDS[kind])
    over = dataclasses.replace(context, deadline=Deadline(lambda: 2.0, 1.0, 1.0, context.work))
    settings.tune(student(), over)
    assert not any(isinstance(event, Epoch) for event in events)
    assert any("after 0 of 1 epochs" in event.text for event in events if isinstance(event, Note))
    digests = []
    for name in ("free", "wide"):
        own = dataclasses.replace(context, work=tmp_path / name)
        if name == "wide":
            own = dataclasses.replace(own, deadline=Deadline(lambda: 0.0, 1e6, 1.0, own.work))
        digests.append(settings.tune(student(), own).digest())
    assert digests[0] == digests[1]
    assert not (tmp_path / "wide" / GIVEN_UP).exists()


def test_a_course_divides_its_time_by_the_epochs_of_its_trainings(context, monkeypatch):
    shares = []

    def nothing(model, own, training):
        shares.append((own.step, own.deadline.left()))
        return model.eval()

    monkeypatch.setattr(course, "train", nothing)
    monkeypatch.setattr("passes.distill.assistants.train", nothing)
    settings = Distill(
        training=SHORT.model_copy(update={"epochs": 6}), stages=(SHORT.model_copy(update={"epochs": 2}),),
        assistants={"keep_macs": (0.5,), "training": SHORT.model_copy(update={"epochs": 4})},
    )  # fmt: skip
    limited = dataclasses.replace(context, deadline=Deadline(lambda: 0.0, 120.0, 2.0, context.work))
    settings.tune(student(), limited)  # no training takes any time here: what one leaves goes to the next
    assert [(step, pytest.approx(left)) for step, left in shares] == [
        ("distill.assistant-0", 40.0), ("distill.stage-0", 30.0), ("distill", 120.0)
    ]  # fmt: skip


def test_a_generation_that_there_is_no_time_for_leaves_the_one_before(context, events):
    seconds = [0.0]

    def emit(event):
        events.append(event)
        if isinstance(event, Epoch):
            seconds[0] = 2e6

    own = dataclasses.replace(context, emit=emit, deadline=Deadline(lambda: seconds[0], 1e6, 1.0, context.work))
    Distill(training=SHORT, generations=3).tune(student(), own)
    assert sum(isinstance(event, Epoch) for event in events) == 1
    assert any("no generation behind number 1" in event.text for event in events if isinstance(event, Note))
    assert len(json.loads((context.work / FINDINGS).read_text())["generations"]) == 1


def test_stages_come_before_the_training_and_each_goes_on_with_the_weights_before_it(context, lessons):
    first = SHORT.model_copy(update={"objectives": (HardLabels(),)})
    made = Distill(training=SHORT, stages=(first,)).tune(student(), context)
    assert [(step, settings) for step, _, _, settings in lessons] == [("distill.stage-0", first), ("distill", SHORT)]
    assert torch.equal(lessons[0][2], student().model[0].weight)
    assert not torch.equal(lessons[1][2], lessons[0][2])
    assert not torch.equal(made.model[0].weight, lessons[1][2])


def test_each_generation_begins_as_the_first_and_is_taught_by_the_one_before(context, lessons):
    made = Distill(training=SHORT, generations=3).tune(student(), context)
    begun = student().model[0].weight
    assert all(torch.equal(weights, begun) for _, _, weights, _ in lessons)
    teachers = [teacher for _, teacher, _, _ in lessons]
    assert teachers[0] is context.teacher
    assert [width(teacher) for teacher in teachers] == [64, 4, 4]
    assert len({id(teacher) for teacher in (*teachers, made.model)}) == 4
    assert not any(parameter.requires_grad for teacher in teachers for parameter in teacher.parameters())


def test_stored_answers_of_one_generation_are_never_taken_for_anothers(context, lessons):
    Distill(training=SHORT, generations=3).tune(student(), context)
    assert len(list(context.cache.glob("*.answers"))) == 3  # one view, three teachers


def test_assistants_stand_between_teacher_and_student_each_taught_by_the_larger(context, lessons):
    settings = {"keep_macs": (0.5, 0.1), "training": SHORT}
    Distill(training=SHORT, assistants=settings).tune(student(), context)
    assert [step for step, *_ in lessons] == ["distill.assistant-0", "distill.assistant-1", "distill"]
    widths = [width(teacher) for _, teacher, _, _ in lessons]
    assert widths[0] == 64
    assert 64 > widths[1] > widths[2] > 4


def test_the_automatic_assistant_is_the_one_that_costs_least_for_what_it_saves(context, lessons, events):
    Distill(training=SHORT, assistants={"candidates": 2, "trial_epochs": 1}).tune(student(), context)
    rows = json.loads((context.work / FINDINGS).read_text())["assistants"]
    teacher_points = course.reached(context.teacher, context)
    size = sum(p.numel() for p in context.teacher.parameters())
    values = [-(teacher_points - row["points"]) / (size - row["parameters"]) for row in rows]
    assert [row["value"] for row in rows] == pytest.approx(values)
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["value"] == max(values)
    assert [step for step, *_ in lessons].count("distill.assistant-0") == 1


def test_a_small_gap_is_told(context, events):
    near = Artifact(network(48, 2), *SPECS)
    Distill(training=SHORT, assistants={"keep_macs": (0.8,)}).tune(near, context)
    assert any(isinstance(event, Note) and "larger gaps" in event.text for event in events)


def test_a_teacher_that_can_only_be_asked_has_no_assistants(context):
    class Asked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3]

    with pytest.raises(ModelError, match="can only be asked"):
        Distill(training=SHORT, assistants={}).tune(student(), dataclasses.replace(context, teacher=Asked()))


COURSE = Distill(
    training=SHORT.model_copy(update={"checkpoint_seconds": 1e-6}), stages=(SHORT,), generations=2,
    assistants={"candidates": 2, "trial_epochs": 1},
)  # fmt: skip


@pytest.mark.parametrize("killed_in", [1, 2, 3, 5])
def test_a_course_that_was_killed_ends_with_the_same_bytes(context, tmp_path, monkeypatch, killed_in):
    whole = COURSE.tune(student(), dataclasses.replace(context, work=tmp_path / "whole", cache=tmp_path / "other"))

    class Killed(BaseException):
        pass

    done = 0
    before = nn.BatchNorm2d.forward

    def dying(self: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += self.training
        if done > 4 * killed_in:
            raise Killed
        return before(self, x)

    with monkeypatch.context() as patched:
        patched.setattr(nn.BatchNorm2d, "forward", dying)
        with pytest.raises(Killed):
            COURSE.tune(student(), context)
    again = COURSE.tune(student(), context)
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
