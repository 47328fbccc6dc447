"""Classes in which the student is far behind count more."""

import dataclasses

import numpy as np
import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from networks import normal
from torch import nn

from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.domains import weights_of
from kdc.distill.strategy_settings.domains import ClassGaps


def network() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    return normal(model, 6)


def test_weights_sum_to_one_rise_with_the_gap_and_are_even_where_nothing_was_seen():
    gaps = torch.tensor([0.1, 0.4, float("nan"), 0.2]).double()
    relative = np.array([0.1, 0.4, 0.7 / 3, 0.2]) / (0.7 / 3)
    expected = 0.3 / 4 + 0.7 * np.exp(relative) / np.exp(relative).sum()
    found = weights_of(gaps, 0.3)
    np.testing.assert_allclose(found.numpy(), expected)
    assert float(found.sum()) == pytest.approx(1)
    assert found.argsort().tolist() == [0, 3, 2, 1]
    for gaps in (torch.full((4,), torch.nan).double(), torch.zeros(4).double()):
        np.testing.assert_allclose(weights_of(gaps, 0.3).numpy(), 0.25)
    np.testing.assert_allclose(weights_of(torch.tensor([1.0, 9.0]).double(), 1.0).numpy(), 0.5)


def test_the_class_that_lacks_most_weighs_most_in_what_is_learnt_of_the_teacher_and_labels_keep_their_weight(
    small_context,
):
    strategy, soft, labels = policies(
        [ClassGaps(momentum=0.5, even=0.0), SoftTargets(), HardLabels()], network(), small_context
    )
    teacher = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 3.0, 0], [0, 0, 3.0]])
    student = teacher * torch.tensor([[1.0], [0.5], [0.5], [-1.0]])
    batch = Batch(index=torch.arange(4), labels=torch.tensor([0, 1, -1, 2]), student=student, teacher=teacher)
    losses = {soft: torch.ones(4), labels: torch.ones(4)}
    torch.testing.assert_close(strategy.weigh(batch, losses)[soft], torch.ones(4))
    strategy.after(batch)
    made = strategy.weigh(batch, losses)
    assert torch.equal(made[labels], torch.ones(4))
    assert made[soft][0] < made[soft][1] == made[soft][2] < made[soft][3]
    assert float(made[soft].mean()) == pytest.approx(1, abs=1e-6)
    # The gaps move smoothly: half of the way to what a batch says.
    before = strategy.trained.gaps.clone()
    strategy.after(dataclasses.replace(batch, student=teacher))
    torch.testing.assert_close(strategy.trained.gaps, before / 2)


def test_a_training_with_class_gaps_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path):
    training = Training(epochs=2, batch=32, checkpoint_seconds=1e-6, strategies=(ClassGaps(),))
    whole, again = whole_and_gone_on(network, small_context, training, tmp_path, 4)
    plain = training.model_copy(update={"strategies": ()})
    without = train(network(), dataclasses.replace(small_context, work=tmp_path / "plain"), plain)
    assert not torch.equal(whole[1].weight, without[1].weight)
    assert same_bytes(whole, again)
