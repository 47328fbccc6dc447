"""Samples mixed in pairs: what each model sees, and what the student is told of it."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from networks import normal
from pydantic import ValidationError
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Drawn
from kdc.distill.presets import patient
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.mixing import cutmix, mixup
from kdc.distill.strategies.student_mixing import mixed_answers
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.strategy_settings.mixing import StudentMixup
from kdc.distill.strategy_settings.views import CutMix, Mixup
from kdc.distill.teacher import predict
from kdc.distill.views import View


def network() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    return normal(model, 6)


def numbered(n: int = 40, height: int = 7, width: int = 5) -> View:
    """Images whose every pixel tells the image's number and the pixel's place."""
    place = torch.arange(height * width).reshape(1, 1, height, width) / 1000
    images = torch.arange(n).reshape(-1, 1, 1, 1) + place.expand(n, 2, -1, -1)
    return View(Split((images,), torch.arange(n)), "0")


def draw(context, n: int = 12, number: int = 3) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    answers = predict(context.teacher, samples)
    return Drawn(number=number, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=answers)


def test_cutmix_pastes_one_box_of_the_partner_and_its_share_is_the_area_that_stays():
    made = cutmix(numbered(), CutMix(), torch.Generator().manual_seed(0))
    images, own = made.samples.inputs[0].numpy(), numbered().samples.inputs[0].numpy()
    areas = set()
    for i in range(len(images)):
        other = images[i, 0].astype(int) != i
        partner = int(made.others[i])
        foreign = images[i][:, other]
        np.testing.assert_array_equal(foreign, own[partner][:, other])
        np.testing.assert_array_equal(images[i][:, ~other], own[i][:, ~other])
        if other.any():
            rows, columns = np.nonzero(other.any(1))[0], np.nonzero(other.any(0))[0]
            assert other[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a box, with nothing left out
        if partner != i:
            assert abs(float(made.share[i]) - (1 - other.mean())) < 1e-6
        areas.add(int(other.sum()))
    assert len(areas) > 8
    assert torch.equal(made.samples.labels, torch.arange(len(images)))


@pytest.mark.parametrize("inputs", [(torch.ones(3, 4),), (torch.ones(3, 1, 4, 4), torch.ones(3, 2))])
def test_cutmix_refuses_what_is_no_image(inputs):
    with pytest.raises(DataError, match="expected one input of images"):
        cutmix(View(Split(inputs, torch.zeros(3)), "0"), CutMix(), torch.Generator())


def test_partial_mixup_mixes_its_portion_of_the_samples_and_leaves_the_others_to_the_bit():
    plain = numbered(40)
    made = mixup(plain, Mixup(portion=0.25), torch.Generator().manual_seed(1))
    assert int((made.share < 1).sum()) == 10
    whole = made.share == 1
    assert torch.equal(made.samples.inputs[0][whole], plain.samples.inputs[0][whole])


def test_answers_are_mixed_as_probabilities():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn((6, 5), generator=generator) * 4 for _ in range(2))
    share = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0, 1.0])

    def softmax(values: np.ndarray) -> np.ndarray:
        return np.exp(values) / np.exp(values).sum()

    found = mixed_answers(one, other, share)
    for i in range(6):
        s, a, b = float(share[i]), one[i].double().numpy(), other[i].double().numpy()
        np.testing.assert_allclose(found[i].exp().numpy(), s * softmax(a) + (1 - s) * softmax(b), rtol=1e-5)
    assert torch.isfinite(mixed_answers(one * 1e4, other * 1e4, share.clamp(0.1, 0.9))).all()


def test_only_the_student_sees_the_mixture_and_its_target_is_of_the_unmixed_pair(small_context):
    (policy,) = policies([StudentMixup()], network(), small_context)
    plain = draw(small_context)
    changed, again = policy.change(plain), policy.change(plain)
    assert torch.equal(changed.inputs[0], again.inputs[0])
    assert not torch.equal(changed.inputs[0], policy.change(dataclasses.replace(plain, number=4)).inputs[0])
    answers = torch.softmax(plain.teacher, 1)
    for i in range(len(plain.index)):
        share = float(changed.share[i])
        rest = (changed.inputs[0][i] - share * plain.inputs[0][i]) / (1 - share)
        partner = int((plain.inputs[0] - rest).flatten(1).abs().amax(1).argmin())
        torch.testing.assert_close(plain.inputs[0][partner], rest, rtol=1e-2, atol=1e-2)
        assert plain.labels[partner] == changed.others[i]
        expected = share * answers[i] + (1 - share) * answers[partner]
        torch.testing.assert_close(torch.softmax(changed.teacher[i], 0), expected)
    # What the teacher says to the mixture itself is something else.
    seen = torch.softmax(small_context.teacher(*changed.inputs), 1)
    assert (seen - torch.softmax(changed.teacher, 1)).abs().amax() > 0.05


def test_a_teacher_that_runs_in_the_step_is_asked_on_the_samples_and_then_on_the_mixtures(small_context):
    (policy,) = policies([StudentMixup()], network(), small_context)
    plain = draw(small_context)
    seen = []
    handle = small_context.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    changed = policy.change(dataclasses.replace(plain, teacher=None))
    handle.remove()
    torch.testing.assert_close(changed.teacher, policy.change(plain).teacher)
    assert torch.equal(seen[0], plain.inputs[0])
    assert torch.equal(seen[1], changed.inputs[0])


def test_a_sample_has_room_for_one_other():
    with pytest.raises(ValidationError, match="`cutmix` and `student-mixup`"):
        Training(transforms=(CutMix(),), strategies=(StudentMixup(),))


def test_strategies_that_change_the_batch_stand_before_those_that_look_at_it(small_context):
    made = policies([PastSelf(), StudentMixup(), SoftTargets(), HardLabels()], network(), small_context)
    assert [policy.kind for policy in made] == ["student-mixup", "ps-kd", "kd", "labels"]


@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_training_on_mixtures_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, killed_after):
    training = Training(
        epochs=2, batch=32, checkpoint_seconds=1e-6, strategies=(StudentMixup(portion=0.5), PastSelf())
    )  # fmt: skip
    whole, again = whole_and_gone_on(network, small_context, training, tmp_path, killed_after)
    assert same_bytes(whole, again)


def rows(tensors: list[torch.Tensor]) -> set[bytes]:
    return {row.contiguous().numpy().tobytes() for tensor in tensors for row in tensor}


def test_a_patient_training_shows_both_models_the_same_mixtures_and_never_one_twice(small_context):
    student = network()
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}

    def record(name: str, model: nn.Module):
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if model.training or name == "teacher":
                seen[name].append(inputs[0].detach().clone())

        return model.register_forward_pre_hook(hook)

    handles = [record("student", student), record("teacher", small_context.teacher)]
    training = patient(epochs=3, batch=32)
    train(student, small_context, training)
    for handle in handles:
        handle.remove()
    students, teachers = rows(seen["student"]), rows(seen["teacher"])
    assert students <= teachers
    assert len(students) == 3 * 96
    assert not students & rows([small_context.data.train.inputs[0]])


def test_a_patient_training_looks_at_no_label(small_context):
    shuffled = list(range(96))
    random.Random(0).shuffle(shuffled)
    other = dataclasses.replace(
        small_context.data, train=Split(small_context.data.train.inputs, small_context.data.train.labels[shuffled])
    )
    made = [
        train(
            network(), dataclasses.replace(small_context, data=data, work=small_context.work / name), patient(epochs=1)
        )
        for name, data in (("own", small_context.data), ("other", other))
    ]
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)
