"""Temperatures and thresholds, against formulas and against every combination."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passes.route.thresholds import UNUSED, best_subset, choose, path_costs, temperature


def problem(draw, exits, n, levels=12):
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    confidences = rng.integers(1, levels, (exits, n)) / levels
    scores = rng.integers(0, 2, (exits + 1, n)).astype(float)
    path_ms = np.sort(rng.uniform(0.1, 2, exits + 1))
    return confidences, scores, path_ms


def outcome(thresholds, confidences, scores, path_ms):
    """Mean latency and drop by following every sample."""
    ms, score = [], []
    for sample in range(scores.shape[1]):
        taken = next((e for e, t in enumerate(thresholds) if confidences[e, sample] >= t), len(thresholds))
        ms.append(path_ms[taken])
        score.append(scores[taken, sample])
    return np.mean(ms), 100 * (np.mean(scores[-1]) - np.mean(score))


def all_outcomes(confidences, scores, path_ms):
    grids = [[*np.unique(c), UNUSED] for c in confidences]
    return [outcome(thresholds, confidences, scores, path_ms) for thresholds in itertools.product(*grids)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_undoes_a_known_scale(scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (probabilities.cumsum(1) > rng.uniform(size=(20000, 1))).argmax(1)
    assert temperature(scale * logits, labels) == pytest.approx(scale, rel=0.05)


def test_the_temperature_stays_within_its_ends():
    logits, labels = np.eye(3) * 5, np.arange(3)
    assert temperature(logits, labels) == pytest.approx(0.05, rel=1e-3)  # all right: the surer the likelier
    assert temperature(logits, labels[::-1].copy() * 0 + np.array([1, 2, 0])) == pytest.approx(20, rel=1e-3)


@given(st.data(), st.integers(1, 3), st.sampled_from([0.0, 3.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_no_thresholds_within_the_drop_are_faster_than_those_chosen(data, exits, max_drop):
    confidences, scores, path_ms = problem(data.draw, exits, data.draw(st.integers(1, 30)), levels=8)
    choice = choose(confidences, scores, path_ms, max_drop=max_drop)
    allowed = [ms for ms, drop in all_outcomes(confidences, scores, path_ms) if drop <= max_drop + 1e-9]
    assert choice.met
    assert choice.mean_ms == pytest.approx(min(allowed))
    assert (choice.mean_ms, choice.drop_points) == pytest.approx(
        outcome(choice.thresholds, confidences, scores, path_ms)
    )
    assert sum(choice.shares) == pytest.approx(1)


@given(st.data(), st.integers(1, 3), st.floats(0.05, 2))
@settings(max_examples=60, deadline=None)
def test_no_thresholds_within_the_latency_score_higher_than_those_chosen(data, exits, limit):
    confidences, scores, path_ms = problem(data.draw, exits, data.draw(st.integers(1, 30)), levels=8)
    choice = choose(confidences, scores, path_ms, mean_latency_ms=limit)
    every = all_outcomes(confidences, scores, path_ms)
    within = [drop for ms, drop in every if ms <= limit]
    assert choice.met == bool(within)
    if within:
        assert choice.drop_points == pytest.approx(min(within))
    else:
        assert choice.mean_ms == pytest.approx(min(ms for ms, _ in every))


@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=25, deadline=None)
def test_the_constraint_holds_wherever_a_wider_gap_is(seed, exits, max_drop):
    rng = np.random.default_rng(seed)
    n = 3000
    confidences = rng.uniform(0.2, 1, (exits, n)).astype(np.float32)
    scores = (rng.uniform(size=(exits + 1, n)) < np.vstack([confidences, np.full(n, 0.9)])).astype(float)
    path_ms = np.arange(1, exits + 2, dtype=float)
    choice = choose(confidences, scores, path_ms, max_drop=max_drop)
    assert choice.met
    ms, drop = outcome(choice.thresholds, confidences, scores, path_ms)
    assert drop <= max_drop + 1e-9
    assert ms == pytest.approx(choice.mean_ms)
    assert ms <= path_ms[-1]


def test_a_threshold_stands_in_the_widest_gap_near_the_best():
    n = 2000  # so that a threshold may move over four samples
    confidences = np.linspace(0.5, 0.6, n).astype(np.float32)
    confidences[1000:] += np.float32(0.1)  # the gap: 1000 samples below, 1000 above
    scores = np.ones((2, n))
    scores[0, :1002] = 0.0  # the exit is right from sample 1002 on
    choice = choose([confidences], scores, [1.0, 2.0], max_drop=0.1)
    assert confidences[999] + 0.04 < choice.thresholds[0] < confidences[1000] - 0.04
    strict = choose([confidences], scores, [1.0, 2.0], max_drop=0.0)
    assert confidences[1001] < strict.thresholds[0] <= confidences[1006]


def test_thresholds_separate_confidences_that_are_neighbours_in_float32():
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    confidences = np.array([below] * 5 + [one] * 5, np.float32)
    scores = np.array([[0.0] * 5 + [1.0] * 5, [1.0] * 10])
    choice = choose([confidences], scores, [1.0, 2.0], max_drop=0)
    assert np.float32(choice.thresholds[0]) == one
    assert choice.shares == (0.5, 0.5)


def test_an_exit_that_costs_more_than_it_saves_is_unused():
    confidences, scores = np.array([[0.9, 0.8]]), np.ones((2, 2))
    assert choose(confidences, scores, [3.0, 2.0], max_drop=0).thresholds == (UNUSED,)


def test_a_way_costs_what_the_exits_before_it_add():
    assert path_costs((0, 2), [1.0, 2.0, 3.0], [0.1, 0.2, -0.3], 4.0) == pytest.approx([1.0, 3.1, 4.1])


def test_the_best_subset_is_the_best_of_all_subsets():
    rng = np.random.default_rng(3)
    n, exits = 200, 4
    confidences = rng.uniform(0.2, 1, (exits, n))
    scores = (rng.uniform(size=(exits + 1, n)) < np.vstack([confidences, np.full(n, 0.8)])).astype(float)
    reach, overhead = [0.3, 0.5, 0.7, 0.9], [0.02, 0.3, 0.02, 0.02]
    subset, choice = best_subset(confidences, scores, reach, overhead, 1.0, max_exits=2, max_drop=2.0)
    assert len(subset) <= 2
    for size in range(3):
        for other in itertools.combinations(range(exits), size):
            paths = path_costs(other, reach, overhead, 1.0)
            rival = choose([confidences[i] for i in other], scores[[*other, exits]], paths, max_drop=2.0)
            assert choice.mean_ms <= rival.mean_ms + 1e-9


def test_no_subset_is_taken_where_no_exit_is_ever_right():
    confidences, scores = np.full((2, 50), 0.9), np.zeros((3, 50))
    scores[2] = 1
    subset, choice = best_subset(confidences, scores, [0.1, 0.2], [0.01, 0.01], 1.0, max_exits=2, max_drop=0)
    assert subset == ()
    assert choice.mean_ms == 1.0
    assert choice.shares == (1.0,)


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_two_calls_choose_the_same(data):
    confidences, scores, path_ms = problem(data.draw, 2, 60)
    assume(scores[-1].any())
    assert choose(confidences, scores, path_ms, max_drop=1) == choose(confidences, scores, path_ms, max_drop=1)
