"""Laws of the pass: what it decides, how far it goes, and that a decision can be replayed, edited and refused."""

import dataclasses
import json
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from prune_zoo import ZOO, ResNet

from kdc.core.budget import Budget, Cost
from kdc.core.deadline import Deadline
from kdc.core.errors import ModelError
from kdc.core.observe import Kept as KeptEvent
from kdc.core.observe import Note
from passes.prune import Kept, Prune
from passes.prune.importance import magnitude, taylor
from passes.prune.level import LEVELS, choose_level
from passes.prune.selection import Limits, Selector


def quick(**settings):
    return Prune(**{"samples": 32, "keep_channels_min": 1, "keep_macs": 0.3} | settings)


@pytest.mark.parametrize("importance", ["taylor", "magnitude"])
@pytest.mark.parametrize("name", ["ResNet", "InvertedResidual", "Transformer"])
def test_decide_leaves_the_artifact_and_the_global_generator_alone_and_repeats_itself(
    zoo, artifact_of, context_of, name, importance
):
    artifact = artifact_of(zoo(name).model)
    before, state = artifact.digest(), torch.get_rng_state()
    decisions = [quick(importance=importance).decide(artifact, context_of(artifact.model)) for _ in range(2)]
    assert decisions[0] == decisions[1]
    assert decisions[0].kept
    assert artifact.digest() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in artifact.model.parameters())


def test_a_decision_survives_json_and_is_replayed_to_the_same_weights(zoo, artifact_of, context_of):
    artifact = artifact_of(zoo("ResNet").model)
    decision = quick().decide(artifact, context_of(artifact.model))
    again = Kept.model_validate(json.loads(decision.model_dump_json()))
    first, second = (quick().apply(artifact, d) for d in (decision, again))
    assert first.digest() == second.digest()
    assert first.digest() != artifact.digest()


def test_another_seed_may_score_other_samples_but_the_same_seed_never_does(zoo, context_of):
    known = zoo("ResNet")
    scores = [
        taylor(known.model, known.graph, context_of(known.model, seed=seed), samples=16, batch=8) for seed in (0, 0, 1)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(("alignment", "floor"), [(1, 3), (4, 4), (8, 2)])
def test_kept_counts_are_aligned_and_above_the_floor_and_the_macs_are_within_the_share(
    zoo, name, scope, alignment, floor
):
    graph = zoo(name).graph
    limits = Limits(alignment, floor, 0.9)
    selector = Selector(graph, np.random.default_rng(1).random(graph.units), limits, scope)
    full, least = graph.macs(graph.without([])), graph.macs(selector.keep(0.0))
    for share in (0.7, 0.2):
        kept = selector.keep(share)
        assert graph.macs(kept) <= max(share * full, least)
        for group in graph.groups:
            count = int(kept[list(group.units)].sum())
            assert group.prunable or count == group.size
            for channels in group.channels:
                assert count == group.size or group.size <= alignment or count * channels % alignment == 0
                assert count == group.size or count * channels >= floor
            assert count >= group.size * (1 - 0.9) - 1e-9


def test_more_is_kept_at_a_larger_share(zoo):
    graph = zoo("ResNet").graph
    selector = Selector(graph, np.random.default_rng(1).random(graph.units), Limits(1, 1, 0.95), "global")
    masks = [selector.keep(share) for share in (1.0, 0.6, 0.3, 0.1)]
    assert masks[0].all()
    assert all((smaller <= larger).all() for larger, smaller in pairwise(masks))


def test_the_units_with_the_lowest_scores_go_first_within_a_group(zoo):
    graph = zoo("ResNet").graph
    scores = np.random.default_rng(1).random(graph.units)
    kept = Selector(graph, scores, Limits(1, 1, 0.9), "layer").keep(0.5)
    for group in graph.groups:
        own = np.array(group.units)
        if group.prunable:
            assert scores[own[kept[own]]].min() > scores[own[~kept[own]]].max()


def test_taylor_is_the_derivative_of_the_loss_by_a_gate_on_each_channel(zoo, context_of):
    known = zoo("ResNet")
    context = context_of(known.model)
    scores = taylor(known.model, known.graph, context, samples=96, batch=96)
    gate = torch.ones(16, requires_grad=True)
    hook = known.model.a.conv2.register_forward_pre_hook(lambda module, x: (x[0] * gate.view(1, -1, 1, 1),))
    data = context.data.train
    context.task.loss(known.model(data.inputs[0]), data.labels).mean().backward()
    hook.remove()
    for parameter in known.model.parameters():
        parameter.grad = None
    units = known.graph.axes["a.conv1.weight", 0]
    np.testing.assert_allclose(scores[units], gate.grad.abs().numpy(), rtol=1e-3, atol=1e-6)


def test_magnitude_does_not_see_a_scale_that_batch_norm_undoes(zoo):
    known = zoo("ResNet")
    before = magnitude(known.model, known.graph)
    scaled = ResNet().eval()
    scaled.load_state_dict(known.model.state_dict())
    with torch.no_grad():
        scaled.a.conv1.weight *= 100
        scaled.a.bn1.running_mean *= 100
        scaled.a.bn1.running_var.copy_((scaled.a.bn1.running_var + scaled.a.bn1.eps) * 1e4 - scaled.a.bn1.eps)
    np.testing.assert_allclose(magnitude(scaled, known.graph), before, rtol=1e-4)


def test_without_limits_a_quarter_of_the_macs_is_kept_and_nothing_is_measured(zoo, artifact_of, context_of):
    artifact, graph = artifact_of(zoo("ResNet").model), zoo("ResNet").graph
    settings, events = quick(keep_macs=None), []
    assert not settings.measures(Budget(max_drop=1.0, peak_memory_mb=3))
    decision = settings.decide(artifact, context_of(artifact.model, events=events))
    full = graph.macs(graph.without([]))
    assert 0.2 * full < macs_of(settings.apply(artifact, decision)) <= 0.25 * full
    told = {event.layer: (event.kept, event.of) for event in events if isinstance(event, KeptEvent)}
    assert told.keys() == decision.kept.keys()
    assert all(len(decision.kept[layer]) == kept < of for layer, (kept, of) in told.items())


@pytest.mark.parametrize(
    "limit",
    [{"latency_ms": 0.5}, {"size_mb": 0.5}, {"macs": 0.5e6}, {"min_speedup": 2.0}, {"latency_ms": 0.7, "size_mb": 0.5}],
)
def test_a_limit_of_the_budget_chooses_the_largest_level_with_headroom(zoo, artifact_of, context_of, limit):
    artifact = artifact_of(zoo("ResNet").model)
    full = macs_of(artifact)
    asked = []

    def forecast(candidate):
        share = macs_of(candidate) / full
        asked.append(share)
        return Cost(latency_ms=share, size_mb=share, macs=share * 1e6, parameters=1)

    settings = quick(keep_macs=None)
    assert settings.measures(Budget(**limit))
    context = context_of(artifact.model, budget=Budget(**limit), forecast=forecast)
    share = macs_of(settings.apply(artifact, settings.decide(artifact, context))) / full
    level = max(level for level in LEVELS if level <= 0.45)
    assert 0.75 * level < share <= level
    assert 0 < len(asked) <= 5


def test_a_budget_out_of_reach_gives_the_smallest_student_and_says_so(zoo, artifact_of, context_of):
    artifact, events = artifact_of(zoo("ResNet").model), []
    cost = Cost(latency_ms=9.0, size_mb=9.0, macs=9e6, parameters=1)
    context = context_of(artifact.model, budget=Budget(latency_ms=1), forecast=lambda _: cost, events=events)
    settings = quick(keep_macs=None)
    small = macs_of(settings.apply(artifact, settings.decide(artifact, context)))
    assert small <= 0.03 * macs_of(artifact)
    assert any(isinstance(event, Note) and "miss" in event.text for event in events)


def test_a_model_that_meets_the_budget_as_it_is_loses_nothing(zoo, artifact_of, context_of):
    artifact = artifact_of(zoo("ResNet").model)
    cost = Cost(latency_ms=0.1, size_mb=0.1, macs=1.0, parameters=1)
    settings = quick(keep_macs=None)
    context = context_of(artifact.model, budget=Budget(latency_ms=1), forecast=lambda _: cost)
    decision = settings.decide(artifact, context)
    assert decision.kept == {}
    assert settings.apply(artifact, decision).digest() == artifact.digest()


def test_levels_fall_and_the_chosen_one_is_the_largest_that_meets():
    assert all(larger > smaller for larger, smaller in pairwise(LEVELS))
    assert len(LEVELS) == 16
    assert LEVELS[-1] == pytest.approx(0.01)
    for limit in (*LEVELS, 0.5):
        level, met = choose_level(lambda level, limit=limit: level <= limit)
        assert met
        assert level == max(level for level in LEVELS if level <= limit)


def test_a_level_that_there_is_no_time_to_ask_for_is_the_best_known_one():
    for questions in range(6):
        asked = []

        def meets(level, asked=asked):
            asked.append(level)
            return level <= 0.3

        level, met = choose_level(meets, lambda asked=asked, questions=questions: len(asked) >= questions)
        known = [one for one in asked if one <= 0.3]
        assert len(asked) <= questions
        assert met
        if known:
            assert level == max(known)
        elif asked:
            assert level < min(asked)  # all of them missed


def test_a_pruning_whose_time_is_over_asks_for_no_forecast_and_one_with_time_decides_as_without_a_limit(
    zoo, artifact_of, context_of
):
    artifact, events, full = artifact_of(zoo("ResNet").model), [], macs_of(artifact_of(zoo("ResNet").model))

    def forecast(candidate):
        share = macs_of(candidate) / full
        return Cost(latency_ms=share, size_mb=share, macs=share * 1e6, parameters=1)

    budget, settings = Budget(latency_ms=0.5), quick(keep_macs=None)
    free = context_of(artifact.model, budget=budget, forecast=forecast)
    decision = settings.decide(artifact, free)
    wide = dataclasses.replace(free, deadline=Deadline(lambda: 0.0, 1e6, 1.0, free.work, 2.0))
    assert settings.decide(artifact, wide) == decision
    assert wide.deadline.given_up() == {}
    over = context_of(artifact.model, budget=budget, events=events)  # its forecast raises
    over = dataclasses.replace(over, deadline=Deadline(lambda: 2.0, 1.0, 1.0, over.work, 2.0))
    assert settings.decide(artifact, over).kept
    told = " ".join(event.text for event in events if isinstance(event, Note))
    assert "the level was chosen by fewer forecasts" in told
    assert "scores of 16 of 32 samples" in told


def macs_of(artifact):
    """Of a ResNet's convolutions and linear layer, by their shapes alone."""
    model = artifact.model
    shapes = [(model.stem, 256), (model.a.conv1, 256), (model.a.conv2, 256), (model.head, 1)]
    shapes += [
        (layer, 64) for layer in (model.b.conv1, model.b.conv2, model.b.shortcut[0], model.c.conv1, model.c.conv2)
    ]
    return sum(layer.weight.numel() * positions for layer, positions in shapes)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        ({"a.conv9": (0,)}, "'a.conv9'"),
        ({"a.conv1": (0, 16)}, r"channels \[16\] do not exist"),
        ({"a.conv1": (-1, 3)}, r"channels \[-1\] do not exist"),
        ({"a.conv1": (3, 3)}, "stands twice"),
        ({"a.conv1": ()}, "none is kept"),
        ({"stem": tuple(range(8))}, "one channel to the model"),
        ({"stem": tuple(range(8)), "a.conv2": tuple(range(1, 9))}, "one channel to the model"),
        ({"head": (0, 1)}, "must stay: it is an output of the model"),
    ],
)
def test_a_decision_edited_into_nonsense_is_refused_with_the_layer_and_the_mend(zoo, artifact_of, edit, found):
    with pytest.raises(ModelError, match=found) as caught:
        Prune().apply(artifact_of(zoo("ResNet").model), Kept(kept=edit))
    assert "→" in str(caught.value)


def test_a_decision_edited_with_sense_is_followed(zoo, artifact_of):
    artifact = artifact_of(zoo("ResNet").model)
    kept = {"stem": (0, 2, 5), "a.conv2": (0, 2, 5), "b.conv1": (7,)}
    pruned = Prune().apply(artifact, Kept(kept=kept)).model
    assert (pruned.stem.out_channels, pruned.a.conv2.out_channels, pruned.b.conv1.out_channels) == (3, 3, 1)
    assert torch.equal(pruned.stem.weight, artifact.model.stem.weight[[0, 2, 5]])


def test_a_decision_against_a_number_in_forward_names_the_layer(zoo, artifact_of):
    artifact = artifact_of(zoo("EncoderLayer").model)
    kept = {"embed": tuple(range(8)), "encoder.self_attn.out_proj": tuple(range(8)), "encoder.linear2": tuple(range(8))}
    with pytest.raises(ModelError, match=r"fails in|must stay"):
        Prune().apply(artifact, Kept(kept=kept))


def test_settings_are_read_without_torch():
    code = "import sys, passes.prune as p; p.Prune.model_json_schema(); assert 'torch' not in sys.modules"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.perf_counter() - started < 10
