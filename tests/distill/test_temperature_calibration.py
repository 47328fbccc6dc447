"""A student that is as sure as it is right, and what of it may not change."""

import copy
import dataclasses

import pytest
import torch
from blobs import Good, with_blobs
from torch import nn

from kdc.core.observe import Note
from kdc.distill.calibration import calibrate
from kdc.distill.loop import train
from kdc.distill.settings import Correlations, HardLabels, SoftTargets, Training
from kdc.distill.teacher import predict
from kdc.tasks.classification import best_temperature

ALWAYS = Training(calibrate=True)


@pytest.fixture
def context(small_context):
    return with_blobs(small_context, Good(), noise=1.0)


def linear(scale: float, *behind: nn.Module) -> nn.Sequential:
    """Knows the centres, and is `scale` times as sure of them as the first of its kind."""
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(scale * 2 * torch.eye(3, 6))
        layer.bias.copy_(scale * torch.tensor([0.1, -0.1, 0.0]))
    return nn.Sequential(nn.Identity(), layer, *behind)


def heard(context, model, training=ALWAYS, frozen=()):
    """What is said while a model is calibrated."""
    said: list[str] = []

    def emit(event):
        said.extend([event.text] if isinstance(event, Note) else [])

    calibrate(model, dataclasses.replace(context, emit=emit), training, frozen)
    return said


def temperature_of(model, split):
    return best_temperature(predict(model, split).numpy(), split.labels.numpy())


@pytest.mark.parametrize("scale", [0.02, 20.0])
def test_a_student_that_is_not_as_sure_as_it_is_right_becomes_so_and_answers_as_before(context, scale):
    model, data = linear(scale), context.data
    before = predict(model, data.test)
    (said,) = heard(context, model)
    after = predict(model, data.test)
    assert "logits divided by" in said
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert temperature_of(model, data.validation) == pytest.approx(1, abs=0.1)
    costs = [float(context.task.loss(outputs, data.test.labels).mean()) for outputs in (before, after)]
    assert costs[1] < 0.8 * costs[0]
    ratio = before / after
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "behind", [nn.Dropout(0.5), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten()), nn.BatchNorm1d(3)]
)
def test_any_layer_will_do_if_it_alone_scales_the_logits(context, behind):
    model = linear(20.0, behind)
    assert "logits divided by" in heard(context, model)[0]
    assert temperature_of(model, context.data.validation) == pytest.approx(1, abs=0.1)


class Tied(nn.Module):
    """One layer, run twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        with torch.no_grad():
            self.layer.weight.copy_(5 * torch.eye(6))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))[:, :3]


@pytest.mark.parametrize("model", [linear(20.0, nn.LogSoftmax(1)), Tied()])
def test_where_no_layer_scales_the_logits_alone_nothing_changes_and_a_note_says_so(context, model):
    before = copy.deepcopy(model.state_dict())
    (said,) = heard(context, model)
    assert "do not scale them alone" in said
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_frozen_last_layer_stays_as_it_is_and_so_does_a_good_temperature(context):
    model = linear(20.0)
    before = model[1].weight.clone()
    assert heard(context, model, frozen=[model[1]]) == []
    assert torch.equal(model[1].weight, before)
    heard(context, model)
    before = model[1].weight.clone()
    assert heard(context, model) == []
    assert torch.equal(model[1].weight, before)


def test_a_student_without_a_mistake_is_not_made_endlessly_sure(small_context):
    context = with_blobs(small_context, Good(), noise=0.1)
    model = linear(1.0)
    heard(context, model)
    confidence = predict(model, context.data.validation).softmax(1).max(1).values.mean()
    assert 0.97 < float(confidence) < 1 - 0.2 / len(context.data.validation)


def test_it_is_done_by_itself_where_an_objective_leaves_the_scale_open_and_else_when_told():
    plain = (HardLabels(), SoftTargets())
    assert Training().calibrated
    assert Training(objectives=(*plain, Correlations())).calibrated
    assert not Training(objectives=plain).calibrated
    assert not Training(objectives=(*plain, Correlations(weight=0))).calibrated
    assert not Training(calibrate=False).calibrated
    assert Training(calibrate=True, objectives=plain).calibrated


def test_correlations_leave_the_scale_open_and_a_training_by_them_ends_calibrated(context):
    """Without it, the student's own temperature would be far from 1 (the second half)."""
    settings = Training(epochs=6, batch=32, learning_rate=0.02, ema=0, objectives=(Correlations(),))
    found = {}
    for told in (None, False):
        torch.manual_seed(0)
        part = context.named(str(told))
        model = train(nn.Linear(6, 3), part, settings.model_copy(update={"calibrate": told}))
        found[told] = temperature_of(model, context.data.validation)
    assert found[None] == pytest.approx(1, abs=0.1)
    assert abs(found[False] - 1) > 0.3


def test_a_finished_training_that_is_gone_on_with_is_calibrated_as_it_was(context):
    settings = Training(epochs=2, batch=32, objectives=(Correlations(),))
    torch.manual_seed(0)
    begun = nn.Linear(6, 3)
    once = train(copy.deepcopy(begun), context, settings)
    again = train(copy.deepcopy(begun), context, settings)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True))
