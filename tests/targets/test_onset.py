"""The onset of throttling, on series whose onset is known."""

import numpy as np
import pytest
from scipy import stats

from targets.onset import find_onset, pettitt, smoothed

N = 240


def noise(seed, scale=0.01, memory=0.0):
    """Autoregressive noise around 0, of this standard deviation."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, scale * np.sqrt(1 - memory**2), N)
    for index in range(1, N):
        values[index] += memory * values[index - 1]
    return values


@pytest.mark.parametrize("seed", range(20))
def test_a_step_is_found_where_it_is(seed):
    onset = 40 + 8 * seed
    found = find_onset(100 * (np.where(np.arange(N) < onset, 1.0, 0.8) + noise(seed)))
    assert found.kind == "step"
    assert abs(found.window - onset) <= 3
    assert found.before == pytest.approx(100, rel=0.01)
    assert found.after == pytest.approx(80, rel=0.01)


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_drift_is_found_near_its_beginning(seed):
    onset = 20 + 10 * seed
    ramp = 1 - 0.25 * np.maximum(0, np.arange(N) - onset) / (N - onset)
    found = find_onset(100 * (ramp + noise(seed)))
    assert found.kind == "drift"
    assert abs(found.window - onset) <= 15
    assert found.after == pytest.approx(76, abs=2)


def test_a_drift_from_the_start_begins_at_the_start():
    found = find_onset(100 * (1 - 0.3 * np.arange(N) / N + noise(3)))
    assert found.kind == "drift"
    assert found.window <= 5


@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_without_a_change_none_is_seen(memory):
    assert all(find_onset(100 * (1 + noise(seed, memory=memory))) is None for seed in range(100))


def test_a_dip_that_passes_is_no_throttling():
    rates = 100 * (1 + noise(1))
    rates[100:140] *= 0.6
    assert find_onset(rates) is None


def test_single_bursts_move_nothing():
    rates = 100 * (np.where(np.arange(N) < 120, 1.0, 0.8) + noise(5))
    rates[[30, 90, 200]] = 10
    assert abs(find_onset(rates).window - 120) <= 3


def test_growing_faster_is_no_throttling():
    assert find_onset(100 * (np.where(np.arange(N) < 60, 0.8, 1.0) + noise(2))) is None


def test_a_fall_below_what_is_asked_for_is_none():
    rates = 100 * (np.where(np.arange(N) < 120, 1.0, 0.95) + noise(2, 0.001))
    assert find_onset(rates) is not None
    assert find_onset(rates, least_drop=0.1) is None


def test_few_windows_or_equal_ones_say_nothing():
    assert find_onset([1.0] * 10 + [0.5] * 9) is None
    assert find_onset([5.0] * N) is None


def test_the_statistic_is_that_of_the_rank_sums():
    """U_t of Pettitt is, up to its sign, twice Mann and Whitney's statistic about its mean."""
    values = np.random.default_rng(0).normal(size=50)
    largest = max(abs(2 * stats.mannwhitneyu(values[:t], values[t:]).statistic - t * (50 - t)) for t in range(1, 50))
    assert pettitt(values) == pytest.approx(min(1, 2 * np.exp(-6 * largest**2 / (50**3 + 50**2))))


def test_its_p_value_is_not_below_what_it_says():
    rng = np.random.default_rng(0)
    below = np.mean([pettitt(rng.normal(size=N)) < 0.05 for _ in range(1000)])
    assert below <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_smoothing_takes_medians_of_five():
    assert smoothed(np.array([1.0, 1, 9, 1, 1, 1, 1])).tolist() == [1] * 7
