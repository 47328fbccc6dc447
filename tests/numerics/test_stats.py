"""The intervals hold what they promise: against SciPy where it has the same thing, by simulation elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as truth

from kdc.numerics.stats import (
    accuracy_interval,
    is_steady,
    log_means,
    mcnemar_p,
    mean_over_inputs,
    median_interval,
    paired_drop,
    paired_log_ratios,
    percentile,
    ratio_interval,
    smallest_difference,
    student_t_quantile,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 30, 99])
@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.975, 0.9995])
def test_the_t_quantile_is_scipys(p, degrees):
    assert student_t_quantile(p, degrees) == pytest.approx(truth.t.ppf(p, degrees), rel=1e-9, abs=1e-12)


def test_a_percentile_needs_ten_samples_beyond_it():
    assert percentile(np.arange(99), 0.9) is None
    assert percentile(np.arange(100), 0.9) == pytest.approx(89.1)
    assert percentile(np.arange(999), 0.99) is None
    assert percentile(np.arange(1000), 0.99) == pytest.approx(989.01)
    assert percentile(np.arange(9999), 0.999) is None
    assert percentile(np.arange(10000), 0.999) == pytest.approx(9989.001)


def coverage(trial, truth_value, trials):
    """How many of the trials' intervals hold the truth."""
    held = 0
    for seed in range(trials):
        interval = trial(np.random.default_rng(seed))
        held += interval.low <= truth_value <= interval.high
    return held


def simulated_process(generator, blocks=6, runs=8):
    """Samples whose true median is 100: a process's, a block's and a run's own deviation, the last one skewed."""
    process = generator.normal(0, 1.5)
    skewed = generator.exponential(1.0, (blocks, runs)) - math.log(2)
    return 100 + process + generator.normal(0, 0.5, (blocks, 1)) + skewed


@pytest.mark.parametrize("processes", [5, 12])
def test_the_medians_interval_holds_the_truth_though_processes_differ(processes):
    def trial(generator):
        clusters = [list(simulated_process(generator)) for _ in range(processes)]
        return median_interval(clusters, generator, resamples=200)

    # the true median of the mixture lies within 0.03 of 100; 95% of 150 is 142, less four standard errors
    assert coverage(trial, 100, 150) >= 132


def test_the_medians_interval_would_miss_the_truth_if_processes_were_one_cluster():
    def trial(generator):
        blocks = [block for _ in range(5) for block in simulated_process(generator)]
        return median_interval([blocks], generator, resamples=100)

    assert coverage(trial, 100, 100) < 80


def correlated_process(generator, blocks=6, runs=10, memory=0.9):
    """Runs whose deviation goes on from run to run and from block to block (AR(1)), around a true median of 100."""
    steps = generator.normal(0, 1, blocks * runs)
    runs_in_turn = np.empty(blocks * runs)
    last = generator.normal(0, 1 / math.sqrt(1 - memory**2))
    for k, step in enumerate(steps):
        runs_in_turn[k] = last = memory * last + step
    return 100 + runs_in_turn.reshape(blocks, runs)


def test_the_medians_interval_holds_the_truth_though_runs_are_correlated():
    def trial(generator):
        clusters = [list(correlated_process(generator)) for _ in range(6)]
        return median_interval(clusters, generator, resamples=200)

    assert coverage(trial, 100, 150) >= 132


def test_an_interval_that_draws_correlated_runs_one_by_one_would_miss_the_truth():
    def trial(generator):
        runs = [[run] for _ in range(6) for run in correlated_process(generator).reshape(-1)]
        return median_interval([runs], generator, resamples=200)

    assert coverage(trial, 100, 100) < 70


@pytest.mark.parametrize("processes", [3, 5, 12, 40])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_smallest_difference_is_found_as_often_as_it_says(processes, power):
    """The verdict's true power by the noncentral t distribution, which the formula has no need of."""
    logs = truth.zscore(np.random.default_rng(0).normal(size=processes), ddof=1) * 0.02
    difference = smallest_difference(logs, 0.01, power=power)
    noncentrality = (math.log1p(difference) - math.log1p(0.01)) / (0.02 / math.sqrt(processes))
    found = truth.nct.sf(truth.t.ppf(0.975, processes - 1), processes - 1, noncentrality)
    assert found == pytest.approx(power, abs=0.03 if processes > 3 else 0.08)


def test_without_any_spread_the_smallest_difference_is_the_one_of_interest():
    assert smallest_difference([0.004] * 5, 0.01) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="at least two"):
        smallest_difference([0.0], 0.01)


@pytest.mark.parametrize("processes", [3, 5, 10])
def test_the_ratios_interval_holds_the_truth_at_its_level(processes):
    def trial(generator):
        return ratio_interval(generator.normal(math.log(1.1), 0.015, processes))

    held = coverage(trial, 1.1, 2000)
    assert abs(held - 1900) < 4 * math.sqrt(2000 * 0.95 * 0.05)


@given(hnp.arrays(np.float64, st.integers(2, 20), elements=st.floats(-3, 3)))
def test_a_ratio_and_its_inverse_agree(logs):
    forth, back = ratio_interval(logs), ratio_interval(-logs)
    assert forth.low <= forth.value <= forth.high
    assert forth.value == pytest.approx(1 / back.value)
    assert forth.low == pytest.approx(1 / back.high)


def test_a_drift_of_the_machine_does_not_move_a_paired_ratio():
    drift = [1.0, 1.7, 0.6, 3.0, 1.2]
    slow = [[[20 * d, 22 * d, 24 * d] for d in drift]] * 2
    fast = [[[10 * d, 11 * d, 12 * d] for d in drift]] * 2
    assert np.exp(paired_log_ratios(slow, fast)) == pytest.approx([2, 2])


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="same processes and rounds"):
        paired_log_ratios([[[1.0], [2.0]]], [[[1.0]]])


def mixture(generator, shares, work=5.0, noise=0.02):
    """A block [3 * inputs]: inputs that take 1 or `work`, each run three times."""
    hard = generator.random(40) < shares
    return (np.where(hard, work, 1.0) * generator.lognormal(0, noise, (3, 40))).reshape(-1)


@pytest.mark.parametrize("hard", [0, 1, 13, 40])
def test_a_mean_over_inputs_is_exact_for_any_mix_where_the_median_is_not(hard):
    inputs = np.where(np.arange(40) < hard, 5.0, 1.0)
    block = np.tile(np.random.default_rng(0).permutation(inputs), 3)
    assert mean_over_inputs(block) == pytest.approx(1 + 4 * hard / 40)
    assert np.median(block) == (5 if hard == 40 else 1)


def test_a_preempted_run_moves_a_mean_over_inputs_by_less_than_its_inputs_jitter():
    block = mixture(np.random.default_rng(0), 0.5)
    before = mean_over_inputs(block)
    block[7] *= 1000
    assert mean_over_inputs(block) == pytest.approx(before, rel=0.005)
    assert block.mean() > 2 * before


def test_blocks_that_do_not_run_each_input_as_often_are_refused():
    for block in ([], [1.0, 2.0, 3.0, 4.0]):
        with pytest.raises(ValueError, match="not each input run 3 times"):
            mean_over_inputs(block)
    assert mean_over_inputs([1.0, 2.0], repeats=1) == 1.5


@pytest.mark.parametrize("share", [0.04, 0.3])
def test_a_ratio_of_means_is_right_for_rare_hard_inputs(share):
    """200 processes of 10 rounds: the mean of the logs is within 1% of the truth; a median over rounds would not be."""
    generator = np.random.default_rng(0)
    above = [[np.full(9, 10.0)] * 10] * 200
    below = [[mixture(generator, share) for _ in range(10)] for _ in range(200)]
    truth_value = 10 / (1 + 4 * share)
    logs = paired_log_ratios(above, below, means=True)
    assert logs.shape == (200,)
    assert np.exp(logs.mean()) == pytest.approx(truth_value, rel=0.01)
    assert paired_log_ratios(below, above, means=True) == pytest.approx(-logs)
    assert np.exp(paired_log_ratios(above, below)).mean() == pytest.approx(10, rel=0.03)  # the easy inputs alone


def test_without_means_each_file_has_its_medians():
    """The default is what was there before there were means."""
    generator = np.random.default_rng(1)
    above, below = generator.lognormal(size=(2, 4, 5, 9))
    expected = np.median(np.log(np.median(above, axis=2) / np.median(below, axis=2)), axis=1)
    assert paired_log_ratios(above, below) == pytest.approx(expected)


def test_two_means_pair_through_a_drift_that_both_see():
    drift = [1.0, 1.7, 0.6]
    slow = [[np.tile([2.0, 10.0], 3) * d for d in drift]] * 2
    fast = [[np.tile([1.0, 2.0], 3) * d for d in drift]] * 2
    assert np.exp(paired_log_ratios(slow, fast, means=True)) == pytest.approx([4, 4])
    assert np.exp(log_means(slow)) == pytest.approx([6 * np.mean(drift)] * 2)


def test_one_process_gives_no_interval():
    with pytest.raises(ValueError, match="at least two processes"):
        ratio_interval([0.1])


def test_a_falling_series_is_not_steady_until_it_levels_off():
    assert not is_steady([100, 90, 80, 70, 60, 50])
    assert not is_steady([10, 10, 10])
    assert is_steady([100, 90, 80, 50, 50.5, 50, 49.9, 50.2, 50])


def test_a_noisy_neighbour_does_not_count_as_warming_up():
    assert is_steady([50, 50, 50, 90, 50, 70])


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (930, 1000)])
def test_an_accuracy_has_scipys_wilson_interval(right, n):
    interval = accuracy_interval([1] * right + [0] * (n - right))
    expected = truth.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert interval == pytest.approx((100 * right / n, 100 * expected.low, 100 * expected.high))


def test_graded_scores_have_scipys_t_interval():
    scores = np.random.default_rng(0).beta(5, 2, 40)
    low, high = truth.t.interval(0.95, 39, loc=scores.mean(), scale=truth.sem(scores))
    assert accuracy_interval(scores) == pytest.approx((100 * scores.mean(), 100 * low, 100 * high))


@pytest.mark.parametrize(("both", "lost", "won"), [(80, 5, 15), (0, 0, 3), (10, 0, 0), (9, 7, 7), (0, 900, 1100)])
def test_mcnemars_p_is_the_exact_binomial_tests(both, lost, won):
    reference = [1] * both + [1] * lost + [0] * won
    candidate = [1] * both + [0] * lost + [1] * won
    expected = truth.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar_p(reference, candidate) == pytest.approx(expected)


def test_the_drops_interval_holds_the_truth():
    n, lost, won = 1500, 0.03, 0.02  # the shares that only one of the two gets right: a true drop of one point

    def trial(generator):
        kind = generator.choice(3, n, p=[lost, won, 1 - lost - won])
        return paired_drop(kind != 1, kind != 0, generator, resamples=400)

    assert coverage(trial, 1.0, 400) >= 380 - 4 * math.sqrt(400 * 0.95 * 0.05)


def test_pairing_makes_the_drops_interval_narrower_than_two_accuracies():
    generator = np.random.default_rng(3)
    reference = generator.random(2000) < 0.8
    candidate = reference.copy()
    candidate[:20] = False
    drop = paired_drop(reference, candidate, generator)
    alone = accuracy_interval(reference)
    assert drop.high - drop.low < (alone.high - alone.low) / 2


def test_no_disagreement_is_no_certainty():
    drop = paired_drop(np.ones(1000), np.ones(1000), np.random.default_rng(0))
    assert (drop.points, drop.low, drop.high) == (0.0, -0.3, 0.3)
    assert drop.p_value == 1.0


@settings(max_examples=30)
@given(hnp.arrays(np.float64, (2, 30), elements=st.floats(0, 1)))
def test_a_drop_is_the_difference_of_the_means_and_lies_in_its_interval(scores):
    drop = paired_drop(scores[0], scores[1], np.random.default_rng(0), resamples=50)
    assert drop.points == pytest.approx(100 * (scores[0].mean() - scores[1].mean()), abs=1e-9)
    assert drop.low <= drop.points <= drop.high
    assert (drop.p_value is not None) == bool(np.isin(scores, (0, 1)).all())


def test_the_same_generator_gives_the_same_interval():
    scores = np.random.default_rng(5).random((2, 100)) < 0.7
    first, second = (paired_drop(*scores, np.random.default_rng(1)) for _ in range(2))
    assert first == second


def test_scores_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        accuracy_interval([0.5, float("nan")])
