"""Times as multiples of a reference's, on made-up clocks."""

import math

import numpy as np
import pytest

from targets.predictor.clock import DISTURBED, joined, level, multiples


def test_a_clock_that_changes_between_rounds_is_in_no_multiple():
    clock = np.array([1.0, 1.3, 0.7, 2.0])
    true = np.array([2.0, 2.0, 5.0, 0.1])  # two copies of the reference, and two files
    assert multiples((true[:, None] * clock).tolist(), copies=2) == pytest.approx([2.5, 0.05])


def test_one_disturbed_block_changes_no_multiple():
    rounds = [[1.0, 1.0, 1.0], [3.0, 9.0, 3.0]]
    assert multiples(rounds, copies=1) == pytest.approx([3.0])


def test_copies_of_the_reference_share_what_their_places_cost():
    # one copy is a percent slow, the other a percent fast
    assert multiples([[1.01], [1 / 1.01], [2.0]], copies=2) == pytest.approx([2.0])
    assert level([[1.0, 3.0], [2.0, 2.0], [9.0, 9.0]], copies=2) == 2.0


def test_two_measurements_are_joined_by_their_mean_unless_one_was_disturbed():
    assert joined(1.0, 1.1) == pytest.approx(math.sqrt(1.1))
    assert joined(1.0, math.exp(DISTURBED) * 1.01) == 1.0
    assert joined(2.0, 1.0) == 1.0
