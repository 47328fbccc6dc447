"""Regions of an image as views, and what the teacher's answers to them are worth."""

import dataclasses

import numpy as np
import pytest
import torch
from answering import teacher_outputs
from pydantic import ValidationError
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn
from kdc.distill.settings import SoftTargets, Training
from kdc.distill.strategies.region_labels import calibrated, softened
from kdc.distill.strategies.regions import crops, self_mix
from kdc.distill.strategy_settings.regions import RegionLabels
from kdc.distill.strategy_settings.views import Crops, SelfMix
from kdc.distill.views import View, view


def ramps(n: int = 60, height: int = 12, width: int = 16) -> View:
    """Images that tell their places: channel 0 is the column's middle, channel 1 the row's, both from 0 to 1."""
    columns = ((torch.arange(width) + 0.5) / width).expand(height, -1)
    rows = ((torch.arange(height) + 0.5) / height)[:, None].expand(-1, width)
    return View(Split((torch.stack([columns, rows]).expand(n, -1, -1, -1).clone(),), torch.arange(n)), "0")


def test_a_crop_is_a_box_of_the_image_with_area_and_sides_within_their_bounds():
    settings = Crops(smallest=0.3, stretch=1.5, flip=0.5)
    made = crops(ramps(), settings, torch.Generator().manual_seed(0)).samples.inputs[0].double().numpy()
    flipped, areas = 0, []
    for columns, rows in made:
        inner = slice(5, -5)  # away from the border, where the image's edge goes on
        assert np.ptp(columns[:, inner], axis=0).max() < 1e-5  # upright: a column of the crop is of one column
        assert np.ptp(rows[inner], axis=1).max() < 1e-5
        across, down = np.diff(columns[0, inner]), np.diff(rows[inner, 0])
        np.testing.assert_allclose(across, across[0], atol=1e-5)
        flipped += across[0] < 0
        wide, high = abs(across[0]) * 16, down[0] * 12
        assert 0 < wide <= 1 + 1e-4
        assert 0 < high <= 1 + 1e-4
        areas.append(wide * high)
        assert 0 <= made.min() <= made.max() <= 1
        if max(wide, high) < 0.999:  # no side was cut off
            assert areas[-1] > 0.3 - 1e-3
            assert 1 / 1.5 - 1e-3 < wide / high < 1.5 + 1e-3
    assert 15 < flipped < 45
    assert max(areas) - min(areas) > 0.4


def test_a_crop_of_the_whole_image_is_the_image():
    whole = crops(ramps(), Crops(smallest=1.0, stretch=1.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.samples.inputs[0], ramps().samples.inputs[0])


def test_self_mix_covers_a_box_with_another_of_the_same_image_and_leaves_labels_and_shares():
    plain = ramps(height=9, width=7)
    marked = plain.samples.inputs[0] + torch.arange(60).reshape(-1, 1, 1, 1) * 10
    others, share = torch.arange(60).flip(0), torch.linspace(0, 1, 60)
    before = View(Split((marked,), plain.samples.labels), "0", others, share)
    made = self_mix(before, SelfMix(), torch.Generator().manual_seed(0))
    assert made.samples.labels is before.samples.labels
    assert made.others is others
    assert made.share is share
    changed = 0
    for i, image in enumerate(made.samples.inputs[0]):
        own = {tuple(pixel) for pixel in marked[i].flatten(1).T.tolist()}
        assert {tuple(pixel) for pixel in image.flatten(1).T.tolist()} <= own  # no pixel of another image
        moved = (image != marked[i]).any(0).numpy()
        if moved.any():
            changed += 1
            rows, columns = np.nonzero(moved.any(1))[0], np.nonzero(moved.any(0))[0]
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            assert moved[box].all()
            shift = (image - marked[i])[(slice(None), *box)].flatten(1)
            assert float((shift.amax(1) - shift.amin(1)).max()) < 1e-4  # all of the box from one other place
    assert changed > 30


@pytest.mark.parametrize("settings", [Crops(), SelfMix()])
def test_regions_are_of_images_only(settings, small_context):
    tokens = Split((torch.ones((4, 3)),), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match="expected one input of images"):
        view(dataclasses.replace(small_context.data, train=tokens), 0, 0, (settings,))


def test_softened_labels_are_distributions():
    found = softened(torch.tensor([2, 0]), 4, 0.2)
    np.testing.assert_allclose(found.numpy(), [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])


def test_answers_below_low_and_above_high_are_labels_and_those_between_are_the_teachers_at_the_boundary_too():
    probabilities = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.9, 0.05, 0.05]]).double()
    target = softened(torch.tensor([1, 1, 1, 1]), 3, 0.1)
    outputs = probabilities.log() + torch.arange(4)[:, None]
    found = calibrated(outputs, target, 0.5 - 1e-12, 0.75 + 1e-12)
    assert torch.equal(found[1:3], outputs[1:3])
    torch.testing.assert_close(found[[0, 3]].exp(), target[[0, 3]])
    assert torch.equal(calibrated(outputs, target, 0.0, 1.0), outputs)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def test_the_student_learns_the_softened_label_of_an_uncertain_region_and_the_teachers_answer_of_a_certain_one(
    small_context,
):
    with torch.random.fork_rng():
        student = network()
    answers = torch.tensor([[0.1, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.1, 0.0]])
    labels, others = torch.tensor([2, 2, -1, 0]), torch.tensor([2, 2, -1, 1])
    share = torch.tensor([1.0, 1.0, 1.0, 0.25])
    settings = [RegionLabels(low=0.5, smoothing=0.3), SoftTargets(weight=1.0, temperature=1.0)]
    strategy, objective = policies(settings, student, small_context)
    drawn = Drawn(
        number=0, index=torch.arange(4), inputs=(torch.ones(4, 1, 6, 6),), labels=labels, teacher=answers,
        others=others, share=share,
    )  # fmt: skip
    changed = strategy.change(drawn)
    targets = [[0.1, 0.1, 0.8], torch.softmax(answers[1], 0), torch.softmax(answers[2], 0), [0.275, 0.625, 0.1]]
    targets = torch.stack([torch.as_tensor(target) for target in targets])
    torch.testing.assert_close(torch.softmax(changed.teacher, 1), targets)
    logits = torch.zeros((4, 3), requires_grad=True)
    batch = Batch(index=drawn.index, labels=labels, student=logits, teacher=changed.teacher)
    (gradient,) = torch.autograd.grad(objective.loss(batch).sum(), logits)
    torch.testing.assert_close(gradient, 1 / 3 - targets)  # of cross-entropy: softmax(logits) - target


def test_very_certain_regions_are_kept_or_given_labels_as_the_settings_say(small_context):
    answers = torch.tensor([[9.0, 0.0, 0.0]])
    drawn = Drawn(number=0, index=torch.arange(1), inputs=(), labels=torch.tensor([0]), teacher=answers)
    for above, kept in (("keep", True), ("labels", False)):
        with torch.random.fork_rng():
            (policy,) = policies([RegionLabels(high=0.9, above=above)], network(), small_context)
        assert torch.equal(policy.change(drawn).teacher, answers) is kept
    with pytest.raises(ValidationError, match="low must not be above high"):
        RegionLabels(low=0.9, high=0.5)


def test_stored_answers_stay_the_teachers_own_and_the_training_ends_the_same_each_time(small_context):
    training = Training(
        epochs=2, batch=32, views=2, transforms=(Crops(smallest=0.5), SelfMix()),
        strategies=(RegionLabels(low=0.6),), objectives=(SoftTargets(weight=1.0, temperature=1.0),),
    )  # fmt: skip
    made = []
    for name in ("one", "two"):
        with torch.random.fork_rng():
            student = network()
        made.append(train(student, dataclasses.replace(small_context, work=small_context.work / name), training))
    assert torch.equal(made[0][1].weight, made[1][1].weight)
    seen = view(small_context.data, small_context.seed, 0, training.transforms)
    stored = teacher_outputs(small_context, seen)
    torch.testing.assert_close(stored, small_context.teacher(*seen.samples.inputs))
