"""The self-test's figures are those of their formulas, and a file's copy is the whole file."""

import math

import numpy as np
import pytest
from scipy import stats as truth

from targets.measure import Settings, compare
from targets.measured import Comparison
from targets.noise import noise_of, twin_of
from targets.ratio import judge

SHORT = Settings(seconds=0.2, processes_min=3, processes_max=3, slice_seconds=0.02, cold_seconds=0.1)


@pytest.fixture
def compared(device, linear):
    file = linear("whole.onnx", external=True)[0]
    with twin_of(file, device) as twin:
        return compare(twin, file, device, settings=SHORT)


def test_a_copy_has_all_of_the_files_parts_and_both_regimes_are_told(compared):
    assert compared.candidate.sha256 == compared.baseline.sha256
    assert compared.candidate.path != compared.baseline.path
    assert [noise.regime for noise in noise_of(compared, 0.01)] == ["hot", "cold"]


def test_the_spread_and_the_smallest_difference_follow_from_the_processes_ratios(compared):
    """Three processes whose ratios are known: the candidate takes 1, 1.02 and 1.04 times the baseline's time."""
    baseline = tuple(((1_000_000,) * 3,) * 3 for _ in range(3))
    candidate = tuple(((round(1_000_000 * times),) * 3,) * 3 for times in (1.0, 1.02, 1.04))
    made = compared.model_copy(
        update={
            "samples_ns": (candidate, baseline),
            "ratio": judge(baseline, candidate, 0.01),
            "cold": None,
            "cold_ratio": None,
        }
    )
    (noise,) = noise_of(made, 0.01)
    spread = np.std(np.log([1, 1.02, 1.04]), ddof=1)
    assert noise.spread == pytest.approx(spread)
    assert noise.ratio.ratio == pytest.approx(1 / 1.04 ** (1 / 3) / 1.02 ** (1 / 3))
    wanted = math.log(1.01) + (truth.t.ppf(0.975, 2) + truth.t.ppf(0.9, 2)) * spread / math.sqrt(3)
    assert noise.smallest == pytest.approx(math.exp(wanted) - 1)
    assert noise.processes == 3


def test_a_file_alone_tells_no_noise(compared):
    alone = Comparison.model_validate(compared.model_dump() | {"baseline": None, "ratio": None})
    with pytest.raises(ValueError, match="a file alone"):
        noise_of(alone, 0.01)
