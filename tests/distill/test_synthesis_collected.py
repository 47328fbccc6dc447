"""Which collected samples are kept: the least noisy by the teacher's answers, and of all classes alike where asked."""

import math

import numpy as np
import pytest
import torch

from kdc.core.errors import DataError
from kdc.distill.synthesis.collected import clean

LOGITS = 3 * torch.randn((60, 4), generator=torch.Generator().manual_seed(0))


def noise_by_loops(logits: np.ndarray, by: str) -> list[float]:
    found = []
    for row in logits.astype(np.float64):
        powers = [math.exp(value - max(row)) for value in row]
        answer = [power / sum(powers) for power in powers]
        found.append(-math.log(max(answer)) if by == "confidence" else -sum(p * math.log(p) for p in answer))
    return found


@pytest.mark.parametrize("by", ["confidence", "entropy"])
def test_the_least_noisy_samples_are_kept(by):
    noise = noise_by_loops(LOGITS.numpy(), by)
    expected = sorted(sorted(range(60), key=lambda index: noise[index])[:20])
    assert clean(LOGITS, 20, by).tolist() == expected


def test_samples_of_no_class_are_left_out_before_those_of_one():
    """What the web gives beside the right images: answers between the classes."""
    known = 8 * torch.eye(4)[torch.arange(40) % 4]
    foreign = torch.randn((80, 4), generator=torch.Generator().manual_seed(1))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(2))
    kept = clean(torch.cat([known, foreign])[order], 40)
    assert (order[kept] < 40).all()


def test_a_balanced_choice_has_the_least_noisy_of_each_class_in_equal_parts():
    skewed = torch.cat([LOGITS, LOGITS[LOGITS.argmax(1) == 0] + torch.tensor([5.0, 0, 0, 0])])
    classes, noise = skewed.argmax(1), noise_by_loops(skewed.numpy(), "confidence")
    kept = clean(skewed, 24, balanced=True)
    assert torch.bincount(classes[kept]).tolist() == [6, 6, 6, 6]
    for one in range(4):
        members = [index for index in range(len(skewed)) if classes[index] == one]
        assert set(sorted(members, key=lambda index: noise[index])[:6]) == {i for i in kept.tolist() if i in members}
    assert torch.bincount(classes[clean(skewed, 24)], minlength=4).max() > 6  # unbalanced without


def test_a_class_with_few_samples_gives_its_places_to_the_others():
    logits = 5 * torch.eye(3)[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])]
    kept = clean(logits, 7, balanced=True)
    assert torch.bincount(logits.argmax(1)[kept]).tolist() == [3, 3, 1]


def test_of_equal_noise_the_earlier_sample_is_kept():
    assert clean(torch.zeros(5, 3), 2).tolist() == [0, 1]


@pytest.mark.parametrize("balanced", [False, True])
def test_all_samples_are_kept_where_all_are_asked_for(balanced):
    assert clean(LOGITS.half(), 60, balanced=balanced).tolist() == list(range(60))


@pytest.mark.parametrize("count", [0, 61])
def test_a_count_that_cannot_be_kept_is_refused(count):
    with pytest.raises(DataError, match=f"{count} samples are to be kept of 60\n  → "):
        clean(LOGITS, count)
