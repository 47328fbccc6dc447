"""The pass from end to end on a small trained network."""

import dataclasses
import json

import pytest
import torch

from kdc.core.cascade import Cascade, confidence
from kdc.core.contract import FINDINGS, Fact
from kdc.core.deadline import Deadline
from kdc.core.errors import ModelError, TargetError
from kdc.core.observe import Epoch, Note
from kdc.distill.settings import HardLabels, SoftTargets
from kdc.distill.teacher import predict
from kdc.tasks.classification import Classification
from passes.quantize import Quantize
from passes.route import Exits, Route
from passes.route.decide import _spread
from passes.route.learn import LEARNED
from passes.route.stages import Cut


def notes(events):
    return [event.text for event in events if isinstance(event, Note)]


def findings(context):
    return json.loads((context.work / FINDINGS).read_text())["exits"]


def points_of(outputs, split):
    return 100 * float((outputs.argmax(1) == split.labels).double().mean())


@pytest.fixture
def longer(short):
    return short.model_copy(update={"epochs": 8})


@pytest.mark.parametrize(("backbone", "max_drop"), [("trained", 0.0), ("frozen", 1.0)])
def test_route_ends_with_a_cascade_that_keeps_its_drop(artifact, context_of, longer, backbone, max_drop):
    events = []
    context = context_of(events=events)
    settings = Route(training=longer, head="conv", backbone=backbone, max_drop=max_drop)
    before = artifact.digest()
    decision = settings.decide(artifact, context)
    applied = settings.apply(artifact, decision)
    again = settings.apply(artifact, decision)
    assert applied.digest() == again.digest()
    tuned = settings.tune(applied, context)
    assert artifact.digest() == before
    model, split = tuned.model, context.data.validation
    assert isinstance(model, Cascade)
    assert not model.training
    assert 1 <= len(decision.exits) <= 2
    with torch.no_grad():
        *early, last = model.answers(*split.inputs)
        outputs, taken = model.route(*split.inputs)
        came = points_of(artifact.model(*split.inputs), split)
    full, routed = points_of(last, split), points_of(outputs, split)
    assert min(came, full) - routed <= max_drop + 1e-6
    found = findings(context)
    assert found["incoming_points"] == pytest.approx(came)
    assert found["drop_points"] == pytest.approx(came - routed, abs=1e-4)
    shares = torch.bincount(taken, minlength=len(early) + 1) / len(split)
    kept = [row for row in found["candidates"] if row["kept"]]
    assert [*(row["share"] for row in kept), found["last_share"]] == pytest.approx(shares.tolist(), abs=1e-6)
    assert found["mean_ms"] < found["plain_ms"] <= found["last_exit_ms"]
    assert found["last_points"] == pytest.approx(full)
    for row in found["candidates"]:
        assert {"after", "macs_share", "points", "temperature", "reach_ms", "overhead_ms"} <= row.keys()
        assert 0.1 <= row["macs_share"] <= 0.8
    for exit_, logits, head in zip(decision.exits, early, model.exits, strict=True):
        assert exit_.temperature == head.temperature != 1
        assert (confidence(logits) - exit_.threshold).abs().min() > 1e-6  # rounding flips none
    assert any("leave behind" in note for note in notes(events))


def test_route_takes_the_graph_that_quantization_leaves(artifact, context_of, longer):
    context = context_of()
    quantized = Quantize().apply(artifact, Quantize().decide(artifact, context))
    settings = Route(training=longer, head="conv", backbone="frozen", exits=("blocks.0",), max_drop=5)
    tuned = settings.tune(settings.apply(quantized, settings.decide(quantized, context)), context)
    assert isinstance(tuned.model, Cascade)
    split = context.data.validation
    with torch.no_grad():
        assert torch.equal(tuned.model.answers(*split.inputs)[-1], quantized.model(*split.inputs))


class Guessable(Classification):
    """A constant guess reaches so many points."""

    def __init__(self, points):
        self.points = points

    def chance(self, data):
        return self.points


def test_an_exit_that_is_no_better_than_chance_is_removed_and_told(artifact, context_of, longer):
    events = []
    context = dataclasses.replace(context_of(events=events), task=Guessable(80.0))
    plain = longer.model_copy(update={"objectives": (HardLabels(), SoftTargets())})
    settings = Route(training=plain, head="conv", backbone="frozen", max_drop=100)
    decision = settings.decide(artifact, context)
    first, second = findings(context)["candidates"]
    assert first["points"] <= 80 < second["points"]
    assert (first["above_chance"], second["above_chance"]) == (False, True)
    assert [exit_.after for exit_ in decision.exits] == ["blocks.1.shortcut"]
    (told,) = [note for note in notes(events) if "is removed" in note]
    assert f"the exit behind blocks.0.conv2 is removed: {first['points']:.2f} points of accuracy" in told
    assert "a constant guess has 80.00" in told


def test_a_model_whose_exits_all_guess_is_left_as_it_is(artifact, context_of, short):
    events = []
    context = dataclasses.replace(context_of(events=events), task=Guessable(100.0))
    assert Route(training=short).decide(artifact, context) == Exits(exits=())
    assert sum("is removed" in note for note in notes(events)) == 2


def test_exits_that_there_is_no_time_to_time_are_not_kept(artifact, context_of, short):
    events, seconds = [], [0.0]

    def emit(event):
        events.append(event)
        if isinstance(event, Epoch):
            seconds[0] = 2e6

    def forbidden(artifacts):
        raise AssertionError("there is no time for a forecast")

    context = dataclasses.replace(context_of(forecasts=forbidden), emit=emit)
    context = dataclasses.replace(context, deadline=Deadline(lambda: seconds[0], 1e6, 1.0, context.work, 0.01))
    settings = Route(training=short)
    decision = settings.decide(artifact, context)
    assert decision == Exits(exits=())
    assert settings.tune(settings.apply(artifact, decision), context).digest() == artifact.digest()
    assert sum(isinstance(event, Epoch) for event in events) == 1
    assert any("0 of 2 exits were timed" in note for note in notes(events))


def test_exits_that_lower_no_latency_are_not_kept(artifact, context_of, short, priced_by_macs):
    def no_faster(artifacts):
        plain, *others = priced_by_macs(artifacts)
        return [plain, *(cost.model_copy(update={"latency_ms": plain.latency_ms * 1.01}) for cost in others)]

    events = []
    context = context_of(events=events, forecasts=no_faster)
    settings = Route(training=short)
    decision = settings.decide(artifact, context)
    assert decision.exits == ()
    assert any("no early exit lowers the mean latency" in note for note in notes(events))
    tuned = settings.tune(settings.apply(artifact, decision), context)
    assert tuned.digest() == artifact.digest()  # though the backbone was trained beside exits that are gone


def test_a_mean_latency_is_kept(artifact, context_of, longer):
    context = context_of()
    plain_ms = context.forecast(artifact).latency_ms
    settings = Route(training=longer, head="conv", mean_latency_ms=0.6 * plain_ms)
    settings.decide(artifact, context)
    found = findings(context)
    assert found["met"]
    assert found["mean_ms"] <= 0.6 * plain_ms


def test_forecasts_that_all_fail_raise_their_error_and_one_that_fails_is_left_out(
    artifact, context_of, short, priced_by_macs
):
    error = TargetError("this target has no If")

    def cascades_fail(artifacts):
        return [cost if i == 0 else error for i, cost in enumerate(priced_by_macs(artifacts))]

    settings = Route(training=short, head="conv")
    with pytest.raises(TargetError, match="no If"):
        settings.decide(artifact, context_of(forecasts=cascades_fail, name="a"))

    def first_fails(artifacts):
        return [error if i == 1 else cost for i, cost in enumerate(priced_by_macs(artifacts))]

    events = []
    context = context_of(events=events, forecasts=first_fails, name="b")
    settings.decide(artifact, context)
    assert any("is left out: this target has no If" in note for note in notes(events))
    assert "reach_ms" not in findings(context)["candidates"][0]


def test_an_exit_named_by_hand_is_trained_not_shipped_random(artifact, context_of, longer):
    events = []
    context = context_of(events=events)
    settings = Route(training=longer, head="conv", backbone="frozen", exits=("blocks.0",), max_drop=100)
    decision = settings.decide(artifact, context)
    (exit_,) = decision.exits
    edited = Exits(exits=(exit_.model_copy(update={"after": "blocks.1", "channels": 16}),))
    applied = settings.apply(artifact, edited)
    random = {name: tensor.clone() for name, tensor in applied.model.exits.state_dict().items()}
    tuned = settings.tune(applied, context)
    assert any("no head was learned behind blocks.1.shortcut" in note for note in notes(events))
    assert all(not torch.equal(random[name], tensor) for name, tensor in tuned.model.exits.state_dict().items())
    split = context.data.validation
    assert points_of(predict(tuned.model, split), split) > 60


def test_a_step_that_was_killed_before_it_learned_starts_again(artifact, context_of, short):
    context = context_of()
    settings = Route(training=short, head="conv", exits=("blocks.0",), max_drop=100)
    decision = settings.decide(artifact, context)
    tuned = settings.tune(settings.apply(artifact, decision), context)
    assert decision == settings.decide(artifact, context)  # from the checkpoint of the finished training
    assert settings.tune(settings.apply(artifact, decision), context).digest() == tuned.digest()
    (context.work / LEARNED).unlink()
    assert isinstance(settings.tune(settings.apply(artifact, decision), context).model, Cascade)


def cut_at(share):
    return Cut(name=str(share), node="", share=share, shape=(1,))


def test_candidates_are_at_most_five_evenly_spaced_by_work():
    every = [cut_at(share) for share in (0.02, 0.1, 0.12, 0.14, 0.3, 0.45, 0.46, 0.6, 0.79, 0.8, 0.9)]
    assert [cut.share for cut in _spread(every)] == [0.1, 0.3, 0.45, 0.6, 0.8]
    assert [cut.share for cut in _spread(every[:4])] == [0.1, 0.12, 0.14]


def test_where_one_layer_does_nearly_all_the_nearest_place_is_the_candidate():
    assert [cut.share for cut in _spread([cut_at(0.01), cut_at(0.85), cut_at(0.99)])] == [0.85]


def test_a_wrong_name_is_answered_before_anything_is_trained(artifact, context_of, short):
    with pytest.raises(ModelError, match=r"blocks.9.*(?s:.)*stem.0"):
        Route(training=short, exits=("blocks.9",)).decide(artifact, context_of())


def test_the_contract_is_that_work_depends_on_the_input_from_here_on(context_of):
    contract = Route().contract(context_of().device)
    assert contract.requires == {Fact.TORCH, Fact.FITTED, Fact.STATIC}
    assert contract.destroys == {Fact.STATIC}
    assert Route().measures(context_of().budget)
