"""Exits learn, the backbone with them or not at all, and a training that was killed ends with the same bytes."""

import copy

import pytest
import torch

from kdc.distill.logit_settings import MovingTarget, SoftTargets
from kdc.distill.settings import HardLabels, Hints
from kdc.distill.teacher import points, predict
from passes.route import Exit, Exits, Route
from passes.route.heads import build
from passes.route.learn import AllAnswers, keep, learn, restore

MOVING = MovingTarget(rate=0.5)  # what it remembers of its steps decides where its target is


def exits(*places):
    return Exits(
        exits=tuple(Exit(after=after, head="conv", channels=8, threshold=0.9, temperature=1.5) for after in places)
    )


@pytest.fixture
def cascade_of(artifact):
    return lambda: build(artifact, exits("stem", "blocks.1"))


def bytes_of(module):
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_exits_learn_to_answer(cascade_of, context_of, short):
    context, cascade = context_of(), cascade_of()
    split = context.data.validation

    def own():
        answers = predict(AllAnswers(cascade), split)
        return [points(answers[:, place], split, context) for place in range(3)]

    before = own()
    learn(cascade, context, Route(training=short.model_copy(update={"epochs": 8})))
    after = own()
    assert after[1] > max(60.0, before[1] + 20)
    assert after[0] > before[0]
    assert after[2] > before[2] - 3
    assert not cascade.training
    assert [head.temperature for head in cascade.exits] == [1.5, 1.5]
    assert not any(module._forward_hooks for module in cascade.modules())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_frozen_backbone_stays_what_it_was_to_the_bit(artifact, context_of, short, quantized):
    from passes.quantize import Quantize

    context = context_of()
    if quantized:
        artifact = Quantize().apply(artifact, Quantize().decide(artifact, context))
    else:
        with torch.no_grad():  # an average of -0.0 would be 0.0
            artifact.model.blocks[0].conv1.weight[0] = -0.0
    cascade = build(artifact, exits("stem", "blocks.1"))
    stages, heads = bytes_of(cascade.stages), bytes_of(cascade.exits)
    learn(cascade, context, Route(training=short, backbone="frozen"))
    assert bytes_of(cascade.stages) == stages
    changed = [name for name, value in bytes_of(cascade.exits).items() if value != heads[name]]
    assert set(changed) == set(heads)


def test_a_trained_backbone_changes_in_every_layer(cascade_of, context_of, short):
    cascade = cascade_of()
    before = bytes_of(cascade.stages)
    learn(cascade, context_of(), Route(training=short))
    assert all(value != before[name] for name, value in bytes_of(cascade.stages).items() if name.endswith("weight"))


@pytest.mark.parametrize("backbone", ["frozen", "trained"])
@pytest.mark.parametrize(
    ("killed_after", "objective"), [(1, SoftTargets()), (11, SoftTargets()), (25, SoftTargets()), (11, MOVING)]
)
def test_a_training_of_exits_that_was_killed_ends_with_the_same_bytes(
    cascade_of, context_of, short, backbone, killed_after, objective
):
    training = short.model_copy(update={"objectives": (HardLabels(), objective)})
    settings = Route(training=training, backbone=backbone)
    whole = learn(cascade_of(), context_of(name="whole"), settings)

    class Killed(BaseException):
        pass

    cascade = cascade_of()
    forwards = 0

    def kill(head, _):
        nonlocal forwards
        forwards += head.training
        if forwards > killed_after:
            raise Killed

    handle = cascade.exits[0].register_forward_pre_hook(kill)
    context = context_of(name="killed")
    with pytest.raises(Killed):
        learn(cascade, context, settings)
    handle.remove()
    again = learn(cascade_of(), context, settings)
    assert bytes_of(again) == bytes_of(whole)


def test_the_exits_weight_and_objectives_are_those_of_the_recipe(cascade_of, context_of, short):
    results = set()
    for number, (weight, objectives) in enumerate(
        [(1.0, (HardLabels(),)), (0.1, (HardLabels(),)), (1.0, (SoftTargets(),)), (1.0, (SoftTargets(), Hints()))]
    ):
        training = short.model_copy(update={"objectives": objectives, "epochs": 1})
        cascade = learn(cascade_of(), context_of(name=str(number)), Route(training=training, exit_weight=weight))
        results.add(cascade.stages[0].state_dict()["stem.0.weight"].numpy().tobytes())
    assert len(results) == 4


def test_exits_cannot_learn_from_hints_alone(short):
    with pytest.raises(ValueError, match="labels"):
        Route(training={"objectives": [{"kind": "hints"}]})


def test_what_was_learned_fits_the_model_wherever_it_is_cut(artifact, context_of, short, tmp_path):
    from safetensors.torch import load_file

    cascade = learn(build(artifact, exits("stem", "blocks.0", "blocks.1")), context_of(), Route(training=short))
    keep(cascade, tmp_path / "learned.safetensors")
    fewer = build(artifact, exits("blocks.0"))
    assert restore(fewer, load_file(tmp_path / "learned.safetensors")) == []
    x = torch.randn(9, 1, 8, 8)
    with torch.no_grad():
        _, middle, _, last = cascade.answers(x)
        one, end = fewer.answers(x)
    torch.testing.assert_close(one, middle, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)


def test_an_exit_of_another_form_than_was_learned_is_missing(artifact, context_of, tmp_path):
    from safetensors.torch import load_file

    cascade = build(artifact, exits("stem"))
    keep(cascade, tmp_path / "learned.safetensors")
    state = load_file(tmp_path / "learned.safetensors")
    wider = copy.deepcopy(exits("stem").exits[0]).model_copy(update={"channels": 12})
    assert restore(build(artifact, Exits(exits=(wider,))), state) == ["stem.0"]
    assert restore(build(artifact, exits("blocks.1")), state) == ["blocks.1.shortcut"]
