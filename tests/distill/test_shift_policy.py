"""Delta-KD in the loop: what its target is made of, what a kill leaves of it, and bases that do not fit."""

import copy
import dataclasses
import math

import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from networks import normal
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.loop import train
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policies import policies
from kdc.distill.policy import Batch
from kdc.distill.predict_only import asked_only
from kdc.distill.settings import Training
from kdc.distill.shift_policy import ShiftedTarget
from kdc.distill.shift_settings import Shifted

CODE = """
import torch
from torch import nn
def build(classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
def small():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return model
"""


def student() -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )
    return normal(model, 6)


@pytest.fixture
def source(tmp_path):
    """What names a model in a recipe."""
    (tmp_path / "bases.py").write_text(CODE)

    def made(model: nn.Module, name: str, build: str = "build", **more: object) -> dict[str, object]:
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        return {"build": f"{tmp_path / 'bases.py'}:{build}", "weights": tmp_path / f"{name}.safetensors", **more}

    return made


@pytest.fixture
def before(small_context) -> nn.Module:
    """The teacher before its fine-tuning."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval().requires_grad_(False)
    drift = torch.randn((3, 36), generator=torch.Generator().manual_seed(4))
    model[1].weight.copy_(small_context.teacher[1].weight + drift)
    model[1].bias.copy_(torch.tensor([0.5, -1.0, 0.2]))
    return model


def policy_of(context, student: nn.Module, **settings: object) -> ShiftedTarget:
    (policy,) = policies(Training(objectives=[{"kind": "delta_kd", **settings}]).objectives, student, context)
    return policy


def batch_of(context, student: nn.Module, n: int = 16) -> Batch:
    samples = context.data.train[:n]
    answers = context.teacher(*samples.inputs)
    return Batch(
        index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, student=student(*samples.inputs),
        teacher=answers,
    )  # fmt: skip


def cooled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight.mul_(0.2)
    return model


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [power / sum(powers) for power in powers]


def test_the_target_is_the_beginnings_times_the_teachers_ratio_to_the_power_of_the_strength(
    small_context, before, source
):
    model = student().eval()
    policy = policy_of(small_context, model, teacher_base=source(before, "before"), strength=0.5, weight=0.7)
    start = model(*batch_of(small_context, model).inputs).tolist()
    with torch.no_grad():
        model[1].weight.add_(0.2)  # the student has learned something since
    batch = batch_of(small_context, model)
    base, expected = before(*batch.inputs).tolist(), []
    for i, teacher in enumerate(batch.teacher.tolist()):
        p, p_base, q_start = softmax(teacher), softmax(base[i]), softmax(start[i])
        raised = [q * (a / b) ** 0.5 for q, a, b in zip(q_start, p, p_base, strict=True)]
        target, q = [x / sum(raised) for x in raised], softmax(batch.student[i].tolist())
        expected.append(0.7 * sum(a * math.log(a / b) for a, b in zip(target, q, strict=True)))
    torch.testing.assert_close(policy.loss(batch), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_teacher_that_did_not_shift_asks_for_nothing(small_context, source):
    model = student().eval()
    policy = policy_of(small_context, model, teacher_base=source(small_context.teacher, "same"))
    values = policy.loss(batch_of(small_context, model))
    values.mean().backward()
    torch.testing.assert_close(values, torch.zeros(16), atol=1e-6, rtol=0)
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) < 1e-6


def test_with_one_base_for_both_it_is_hintons_divergence(small_context, before, source):
    model = student().eval()
    base = source(before, "before")
    batch = batch_of(small_context, model)
    values = policy_of(small_context, model, teacher_base=base, student_base=base).loss(batch)
    torch.testing.assert_close(values, soft_targets(batch.student, batch.teacher, 1.0))


def test_the_student_shifts_as_the_teacher_did_and_not_to_where_the_teacher_is(small_context, before, source, tmp_path):
    def linear() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(8)))
        return model

    small_context = dataclasses.replace(small_context, teacher=cooled(small_context.teacher))
    before = cooled(before)  # probabilities far from 0 and 1, where the divergence is steep
    (inputs,) = small_context.data.train.inputs

    def shift(new: nn.Module, old: nn.Module) -> torch.Tensor:
        """In logarithms of probabilities, but for what all classes share."""
        with torch.no_grad():
            moved = torch.log_softmax(new(inputs), 1) - torch.log_softmax(old(inputs), 1)
        return moved - moved.mean(1, keepdim=True)

    common = {"epochs": 30, "batch": 32, "learning_rate": 0.05, "weight_decay": 0, "views": 1, "ema": 0}
    trained = {
        name: train(
            linear(),
            dataclasses.replace(small_context, work=tmp_path / name),
            Training(objectives=[objective], **common),
        )
        for name, objective in (
            ("delta", {"kind": "delta_kd", "teacher_base": source(before, "before")}),
            ("kd", {"kind": "kd", "temperature": 1, "weight": 1}),
        )
    }
    asked = shift(small_context.teacher, before)
    error = {name: float((shift(model, linear()) - asked).square().mean()) for name, model in trained.items()}
    assert error["delta"] < 0.05 * float(asked.square().mean())
    assert error["kd"] > 10 * error["delta"]
    away = {name: float(shift(small_context.teacher, model).square().mean()) for name, model in trained.items()}
    assert away["delta"] > 10 * away["kd"]


def test_bases_stay_as_they_are_in_evaluation_mode_and_see_the_inputs_of_the_batch(small_context, before, source):
    model = student()
    policy = policy_of(
        small_context, model, teacher_base=source(before, "before"), student_base=source(model, "base", "small")
    )
    own = policy_of(small_context, model, teacher_base=source(before, "before"))
    states = [{name: t.clone() for name, t in p.student_base.state_dict().items()} for p in (policy, own)]
    model.train()
    assert [*model[2].running_mean] == [0] * 8
    batch = batch_of(small_context, model)  # moves the student's BatchNorm
    for p, state in zip((policy, own), states, strict=True):
        first, second = p.loss(batch), p.loss(batch)
        assert torch.equal(first, second)  # no dropout
        assert not any(module.training for base in (p.student_base, p.teacher_base) for module in base.modules())
        assert not any(tensor.requires_grad for tensor in p.student_base.parameters())
        for name, tensor in p.student_base.state_dict().items():
            assert torch.equal(tensor, state[name])
    torch.testing.assert_close(policy.loss(batch), own.loss(batch))  # the same student by either name
    other = dataclasses.replace(batch, inputs=(batch.inputs[0] + 1,))
    assert not torch.allclose(own.loss(other), own.loss(batch))


@pytest.mark.parametrize("killed_after", [2, 7])
def test_a_training_that_was_killed_goes_on_from_the_same_beginnings(
    small_context, before, source, tmp_path, killed_after
):
    training = Training(
        epochs=3, batch=24, checkpoint_seconds=1e-6, accumulate=2,
        objectives=[{"kind": "labels"}, {"kind": "delta_kd", "teacher_base": source(before, "before", apart=True)}],
    )  # fmt: skip
    whole, again = whole_and_gone_on(student, small_context, training, tmp_path, killed_after)
    assert same_bytes(whole, again)
    assert [*again.state_dict()] == [*student().state_dict()]


def test_a_base_that_is_loaded_when_asked_is_let_go_at_the_end(small_context, before, source):
    model = student().eval()
    policy = policy_of(small_context, model, teacher_base=source(before, "before", apart=True))
    (base,) = asked_only(policy.teacher_base)
    policy.loss(batch_of(small_context, model))
    assert base._loaded
    policy.close()
    assert not base._loaded


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_base_of_other_classes_is_refused_by_name(small_context, before, source, whose):
    wide = source(nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), "wide", arguments={"classes": 5})
    bases = {"teacher_base": source(before, "before"), f"{whose}_base": wide}
    training = Training(epochs=1, batch=24, objectives=[{"kind": "delta_kd", **bases}])
    with pytest.raises(
        ModelError, match=rf"{whose}_base answers \[24, 5\], the {whose} \[24, 3\](.|\n)*earlier checkpoint"
    ):
        train(student(), small_context, training)


def test_settings_name_the_teachers_base_and_nothing_that_is_no_model():
    with pytest.raises(ValidationError, match="teacher_base\n  Field required"):
        Shifted()
    with pytest.raises(ValidationError, match="one of `build`, `onnx`, `torchscript` or `ask`"):
        Shifted(teacher_base={"weights": "w.safetensors"})
    with pytest.raises(ValidationError, match="'start'"):
        Shifted(teacher_base={"build": "a.py:b"}, student_base="end")
