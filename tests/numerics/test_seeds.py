"""What several seeds support: against SciPy, by hand, and by simulation of what the test is for."""

import numpy as np
import pytest
from scipy import stats as truth

from kdc.numerics.seeds import crossed_difference, holm, mean_over_seeds, verdict


def test_the_mean_over_seeds_has_scipys_t_interval():
    values = [97.1, 98.0, 96.6, 97.4, 97.7]
    found = mean_over_seeds(values)
    low, high = truth.t.interval(0.95, 4, loc=np.mean(values), scale=truth.sem(values))
    assert found == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="at least two"):
        mean_over_seeds([1.0])


def by_hand(d):
    """The test's statistic and degrees of freedom by loops."""
    r, n = d.shape
    m = sum(d[s, i] for s in range(r) for i in range(n)) / (r * n)
    rows = [sum(d[s]) / n for s in range(r)]
    columns = [sum(d[:, i]) / r for i in range(n)]
    seeds = n * sum((row - m) ** 2 for row in rows) / (r - 1)
    samples = r * sum((column - m) ** 2 for column in columns) / (n - 1)
    both = sum((d[s, i] - rows[s] - columns[i] + m) ** 2 for s in range(r) for i in range(n)) / ((r - 1) * (n - 1))
    spread = max(seeds, both) + max(samples - both, 0)
    trusted = seeds if r >= 5 else max(seeds, both)
    return m, (spread / (r * n)) ** 0.5, min(n - 1, spread**2 / (trusted**2 / (r - 1)))


@pytest.mark.parametrize("seeds", [2, 4, 5, 8])
@pytest.mark.parametrize("draw", range(3))
def test_the_crossed_test_is_its_formula(seeds, draw):
    generator = np.random.default_rng(draw)
    method, reference = (generator.random((seeds, 30)) < p for p in (0.8, 0.6))
    mean, error, degrees = by_hand(method.astype(float) - reference)
    found = crossed_difference(method, reference)
    assert found.points == pytest.approx(100 * mean)
    assert found.p_value == pytest.approx(2 * truth.t.sf(abs(mean / error), degrees))
    half = truth.t.ppf(0.975, degrees) * error
    assert (found.low, found.high) == pytest.approx((100 * (mean - half), 100 * (mean + half)))


def test_where_all_samples_agree_it_is_the_t_test_over_seeds():
    by_seed = np.array([0.3, 0.1, 0.25, 0.4, 0.2])
    d = np.repeat(by_seed[:, None], 1000, axis=1)
    found = crossed_difference(d, np.zeros_like(d))
    assert found.p_value == pytest.approx(truth.ttest_1samp(by_seed, 0).pvalue)


def test_where_all_seeds_agree_it_is_the_t_test_over_samples():
    by_sample = np.random.default_rng(1).normal(0.05, 0.4, 400)
    d = np.repeat(by_sample[None], 5, axis=0)
    found = crossed_difference(d, np.zeros_like(d))
    assert found.p_value == pytest.approx(truth.ttest_1samp(by_sample, 0).pvalue)


def test_equal_scores_show_no_difference_within_the_rule_of_three():
    scores = np.random.default_rng(2).random((5, 300)) < 0.9
    assert crossed_difference(scores, scores) == (0.0, -1.0, 1.0, 1.0)


def test_a_difference_turned_round_changes_its_sign_alone():
    generator = np.random.default_rng(3)
    a, b = generator.random((5, 100)) < 0.9, generator.random((5, 100)) < 0.8
    there, back = crossed_difference(a, b), crossed_difference(b, a)
    assert back == pytest.approx((-there.points, -there.high, -there.low, there.p_value))


def trainings(generator, points, seed_spread, seeds=5, samples=400):
    """Scores of one method: samples of their own difficulty, seeds of their own luck."""
    difficulty = generator.normal(2.0, 1.5, samples)
    luck = generator.normal(0, seed_spread, (2, seeds, 1))
    noise = generator.logistic(0, 1.0, (2, seeds, samples))
    lift = np.array([points, 0.0])[:, None, None]
    return (difficulty + luck + lift + noise > 0).astype(float)


@pytest.mark.parametrize("seed_spread", [0.0, 0.15, 0.6])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_methods_that_are_equal_are_told_apart_no_more_often_than_the_level_allows(seeds, seed_spread):
    generator = np.random.default_rng(4)
    trials = 2000
    found = np.array(
        [crossed_difference(*trainings(generator, 0.0, seed_spread, seeds)).p_value for _ in range(trials)]
    )
    for level, excess in ((0.05, 1.0), (0.01, 1.3), (0.001, 2.0)):
        assert (found < level).mean() < excess * level + 3 * (level / trials) ** 0.5


def test_a_method_that_is_better_is_found():
    generator = np.random.default_rng(5)
    found = [crossed_difference(*trainings(generator, 1.0, 0.15)) for _ in range(100)]
    assert sum(one.p_value < 0.05 and one.points > 0 for one in found) > 95


def test_the_interval_holds_the_true_difference():
    generator = np.random.default_rng(6)
    held, trials = 0, 600
    for _ in range(trials):
        d = generator.normal(0, 0.05, (5, 1)) + generator.normal(0, 0.3, (1, 200)) + generator.normal(0, 0.3, (5, 200))
        _, low, high, _ = crossed_difference(d + 0.1, np.zeros_like(d))
        held += low <= 10 <= high
    assert held / trials > 0.93


@pytest.mark.parametrize("shape", [(1, 10), (5, 1)])
def test_one_seed_or_one_sample_is_refused(shape):
    with pytest.raises(ValueError, match="two of each"):
        crossed_difference(np.ones(shape), np.zeros(shape))


def test_scores_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        crossed_difference(np.ones((5, 3)), np.ones((5, 4)))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("points", "p_value", "said"),
    [
        (1.0, 0.01, "better"),
        (-1.0, 0.01, "worse"),
        (5.0, 0.05, "no difference shown"),
        (0.0, 0.0, "no difference shown"),
    ],
)
def test_a_verdict_needs_the_p_value_below_the_level(points, p_value, said):
    assert verdict(points, p_value) == said
