import dataclasses

import pytest
import torch
from lowering_zoo import images

from kdc.core.budget import Budget
from kdc.core.deadline import Deadline
from kdc.core.observe import Epoch, Note
from kdc.distill.settings import Training
from passes.export.lower import lower
from passes.quantize import Quantize

SHORT = Training(epochs=20, batch=32, learning_rate=1e-3, ema=0.9, calibrate=False)  # labels are the teacher's own here


def coarse(lowered, name, times):
    """A decision whose steps are so many times too wide, as a bad calibration might leave it."""
    decision = lowered.decision(name)
    grids = {
        tensor: grid.model_copy(update={"scale": grid.scale * times, "zero_point": round(grid.zero_point / times)})
        for tensor, grid in decision.activations.items()
    }
    return Quantize().apply(lowered.float(name), decision.model_copy(update={"activations": grids}))


def notes(events):
    return [event.text for event in events if isinstance(event, Note)]


@torch.no_grad()
def divergence(model, teacher):
    """Kullback-Leibler divergence from the teacher, nats."""
    student, target = model(images(128, 9)).log_softmax(1), teacher(images(128, 9)).log_softmax(1)
    return float(torch.nn.functional.kl_div(student, target, log_target=True, reduction="batchmean"))


def test_calibration_that_costs_little_is_left_as_it_is(lowered, quantization_context, tmp_path):
    artifact = Quantize().apply(lowered.float("plain"), lowered.decision("plain"))
    events, before = [], artifact.digest()
    context = quantization_context(lowered.float("plain").model, tmp_path, events, Budget(max_drop=20))
    tuned = Quantize().tune(artifact, context)
    assert tuned.digest() == before
    assert "accuracy 100.00 in float" in notes(events)[0]
    assert "8.00 points" in notes(events)[0]
    assert not tuned.model.training


def test_quantization_aware_distillation_wins_back_what_calibration_lost(
    lowered, quantization_context, in_runtime, tmp_path
):
    teacher = lowered.float("plain").model
    events = []
    artifact = coarse(lowered, "plain", 24)
    lost = divergence(artifact.model, teacher)
    context = quantization_context(teacher, tmp_path, events, Budget(max_drop=1))
    tuned = Quantize(training=SHORT).tune(artifact, context)
    assert divergence(tuned.model, teacher) < 0.5 * lost
    assert "after quantization-aware distillation" in notes(events)[0]
    assert len([event for event in events if isinstance(event, Epoch)]) == SHORT.epochs
    with torch.no_grad():
        expected = tuned.model(images(32))
    found = in_runtime(lower(tuned, 21), images(32))  # learned scales reach the file
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_the_same_training_twice_gives_the_same_bytes(lowered, quantization_context, tmp_path):
    digests = set()
    for folder in ("a", "b"):
        context = quantization_context(lowered.float("perceptron").model, tmp_path / folder)
        artifact = coarse(lowered, "perceptron", 24)
        digests.add(
            Quantize(training=SHORT.model_copy(update={"epochs": 1}), qat="always").tune(artifact, context).digest()
        )
    assert len(digests) == 1


def test_training_that_does_not_help_is_put_back(lowered, quantization_context, tmp_path):
    artifact = Quantize().apply(lowered.float("perceptron"), lowered.decision("perceptron"))
    events, before = [], artifact.digest()
    context = quantization_context(lowered.float("perceptron").model, tmp_path, events)
    harmful = SHORT.model_copy(update={"learning_rate": 0.5, "epochs": 1})
    assert Quantize(training=harmful, qat="always").tune(artifact, context).digest() == before
    assert "was put back" in notes(events)[0]


@pytest.mark.parametrize("qat", ["never"])
def test_never_is_never(qat, lowered, quantization_context, tmp_path):
    artifact = coarse(lowered, "perceptron", 40)
    before = artifact.digest()
    context = quantization_context(lowered.float("perceptron").model, tmp_path, budget=Budget(max_drop=0))
    assert Quantize(qat=qat).tune(artifact, context).digest() == before


def test_without_time_nothing_is_trained_and_calibrations_result_ships(lowered, quantization_context, tmp_path):
    artifact, events = coarse(lowered, "perceptron", 40), []
    before = artifact.digest()
    context = quantization_context(lowered.float("perceptron").model, tmp_path, events, Budget(max_drop=0))
    context = dataclasses.replace(context, deadline=Deadline(lambda: 2.0, 1.0, 1.0, context.work))
    assert Quantize(qat="always").tune(artifact, context).digest() == before
    assert "no quantization-aware distillation, by compile_minutes 1" in notes(events)[0]


def test_time_that_ends_while_it_trains_keeps_the_better_of_what_it_learned_and_calibration(
    lowered, quantization_context, tmp_path
):
    artifact, events, seconds = coarse(lowered, "plain", 24), [], [0.0]
    context = quantization_context(lowered.float("plain").model, tmp_path, events, Budget(max_drop=0))

    def emit(event):
        events.append(event)
        if isinstance(event, Epoch) and event.epoch == 2:
            seconds[0] = 2e6

    context = dataclasses.replace(context, emit=emit, deadline=Deadline(lambda: seconds[0], 1e6, 1.0, context.work))
    tuned = Quantize(training=SHORT, qat="always").tune(artifact, context)
    assert not tuned.model.training
    assert sum(isinstance(event, Epoch) for event in events) == 2
    assert any("the training ended after 2 of 20 epochs" in note for note in notes(events))
    assert any("quantization-aware distillation" in note for note in notes(events))


def test_integers_are_calibrated_too_and_stay_integers(lowered, quantization_context, in_runtime, tmp_path):
    artifact, events = coarse(lowered, "plain", 24), []
    context = quantization_context(lowered.float("plain").model, tmp_path, events)
    settings = SHORT.model_copy(update={"epochs": 1, "calibrate": True})
    tuned = Quantize(training=settings, qat="always").tune(artifact, context)
    assert any("logits divided by" in note for note in notes(events))
    with torch.no_grad():
        expected = tuned.model(images(32))
    found = in_runtime(lower(tuned, 21), images(32))
    assert (found - expected).square().mean().sqrt() < 0.05 * expected.std()
