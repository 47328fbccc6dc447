"""Weights of teachers: learned for each sample by the student's reward, and by how like their tasks are."""

import dataclasses

import numpy as np
import pytest
import torch
from blobs import Good, Noisy, Specialist, same_bytes_after_a_kill, student, with_blobs
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.core.observe import Note
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.several import Several, mean_of_probabilities
from kdc.distill.strategies.teacher_weights import ReinforcedSelection, advantages, parc, states
from kdc.distill.strategy_settings.several import ReinforcedTeachers, SimilarTasks

GOOD, NOISY, SPECIALIST = range(3)


@pytest.fixture
def context(small_context):
    return with_blobs(small_context, Several([Good(), Noisy(), Specialist(0)]))


def drawn(context, n: int = 24, number: int = 3) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    teacher = context.teacher(*samples.inputs)
    return Drawn(number=number, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=teacher)


def chances(policy: ReinforcedSelection, context) -> torch.Tensor:
    """[samples, teachers] of the test split."""
    samples = context.data.test
    step = Drawn(
        number=0, index=torch.arange(len(samples)), inputs=samples.inputs, labels=samples.labels,
        teacher=context.teacher(*samples.inputs),
    )  # fmt: skip
    return policy.chances(states(step.teacher, step))


def learned(context, epochs: int) -> ReinforcedSelection:
    """The policy after a training beside labels and soft targets."""
    (policy,) = policies([ReinforcedTeachers(rate=0.5)], model := student(), context)
    assert torch.equal(chances(policy, context), torch.full((96, 3), 0.5))

    class Watched(Policy):
        """The policy as one of the caller's own, so that what it learned can be looked at."""

        trained = policy.trained

        def change(self, step: Drawn) -> Drawn:
            return policy.change(step)

        def after(self, batch: Batch) -> None:
            policy.after(batch)

    training = Training(
        epochs=epochs, batch=32, learning_rate=1e-2, ema=0.0,
        objectives=(HardLabels(weight=0.5), SoftTargets(temperature=1.0, weight=0.5)),
    )  # fmt: skip
    train(model, context, training, extra=[Watched()])
    return policy


def test_the_chance_of_a_noisy_teacher_falls_and_that_of_a_good_one_rises(context):
    means = chances(learned(context, 30), context).mean(0)
    assert means[NOISY] < 0.1
    assert means[GOOD] > 0.9
    assert means[NOISY] < means[SPECIALIST] < means[GOOD]


def test_a_specialist_is_asked_for_its_class_and_not_for_others_where_no_teacher_knows_all(context):
    context = dataclasses.replace(context, teacher=Several([Specialist(0), Noisy(), Specialist(1, 2)]))
    chance, zero = chances(learned(context, 40), context), context.data.test.labels == 0
    assert chance[zero, 0].mean() > 0.7 > 0.3 > chance[~zero, 0].mean()
    assert chance[:, NOISY].mean() < 0.1
    assert chance[~zero, 2].mean() > 0.9


def test_the_target_is_the_mean_of_the_chosen_teachers_and_of_all_where_none_is(context):
    (policy,) = policies([ReinforcedTeachers()], student(), context)
    step = drawn(context, 64)
    target = policy.change(step).teacher
    assert torch.equal(policy.change(step).teacher, target)  # the same coins for the same step
    p = torch.softmax(step.teacher, -1)
    kinds = set()
    for i in range(64):
        chosen = [k for k in range(3) if policy._action[i, k]] or [0, 1, 2]
        kinds.add(len(chosen))
        torch.testing.assert_close(target[i].exp(), p[i, chosen].mean(0))
    assert kinds == {1, 2, 3}


@pytest.mark.parametrize("follow", [0.1, 0.7])
def test_the_policys_step_is_reinforce_of_the_students_reward(context, follow):
    model = student().eval()
    (policy,) = policies([ReinforcedTeachers(rate=0.3, follow=follow)], model, context)
    with torch.no_grad():
        policy.trained.weight.copy_(torch.randn((3, 5), generator=torch.Generator().manual_seed(1)) * 0.5)
    step = drawn(context, 16)
    changed = policy.change(step)
    outputs = model(*step.inputs).detach()
    weight, bias = (policy.trained.get_buffer(n).double().clone().requires_grad_() for n in ("weight", "bias"))
    state, action = policy._state.double(), policy._action.double()
    # REINFORCE by autograd, on the Bernoulli likelihood of the coins.
    log_q = torch.log_softmax(outputs.double(), 1)
    cost = -log_q[torch.arange(16), step.labels]
    p = torch.softmax(changed.teacher.double(), 1)
    reward = -cost - follow * (p * (p.log() - log_q)).sum(1)
    advantage = (reward - reward.mean()) / reward.std(correction=0)
    coin = torch.distributions.Bernoulli(logits=(state * weight).sum(-1) + bias)
    (advantage[:, None] * coin.log_prob(action)).sum(1).mean().backward()
    expected = [(value.detach() + 0.3 * value.grad).float() for value in (weight, bias)]
    policy.after(
        Batch(index=step.index, inputs=step.inputs, labels=step.labels, student=outputs, teacher=changed.teacher)
    )
    torch.testing.assert_close(policy.trained.weight, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(policy.trained.bias, expected[1], rtol=1e-4, atol=1e-6)


def test_the_reward_is_taken_without_touching_the_students_statistics_or_modes(context):
    model = student().train()
    model[3].eval()
    (policy,) = policies([ReinforcedTeachers()], model, context)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step = policy.change(drawn(context))
    outputs = torch.zeros(24, 3)
    policy.after(Batch(index=step.index, inputs=step.inputs, labels=step.labels, student=outputs, teacher=step.teacher))
    assert model[0].training
    assert not model[3].training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_states_are_bounded_and_unlabelled_samples_have_no_distance_from_their_label(context):
    step = drawn(context)
    unlabelled = torch.arange(24) % 2 == 0
    step = dataclasses.replace(step, labels=torch.where(unlabelled, -1, step.labels), teacher=step.teacher * 100)
    state = states(step.teacher, step)
    assert state.shape == (24, 3, 5)
    assert ((state >= 0) & (state <= 1 + 1e-6)).all()
    assert (state[unlabelled, :, 3] == 0).all()
    assert (state[~unlabelled, NOISY, 3] > 0.5).any()


def test_advantages_have_no_mean_and_are_nothing_where_all_rewards_are_equal():
    rewards = torch.tensor([-3.0, -1.0, -2.0, -2.0])
    torch.testing.assert_close(advantages(rewards), torch.tensor([-1.0, 1.0, 0.0, 0.0]) * 2**0.5)
    assert torch.equal(advantages(torch.full((4,), -2.0)), torch.zeros(4))


def test_parc_is_the_rank_correlation_of_distances_with_those_of_labels():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn((12, 4), generator=generator), torch.arange(12) % 3
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    one_hot = np.eye(3)[labels.numpy()]
    of_features = [1 - np.corrcoef(features[i].numpy(), features[j].numpy())[0, 1] for i, j in pairs]
    of_labels = [1 - np.corrcoef(one_hot[i], one_hot[j])[0, 1] for i, j in pairs]

    def ranks(values: list[float]) -> list[float]:
        rounded = [round(value, 9) for value in values]
        return [sum(o < v for o in rounded) + (sum(o == v for o in rounded) - 1) / 2 for v in rounded]

    expected = np.corrcoef(ranks(of_features), ranks(of_labels))[0, 1]
    assert abs(parc(features, labels) - expected) < 1e-5
    order = torch.randperm(12, generator=generator)
    assert abs(parc(features[order], labels[order]) - parc(features, labels)) < 1e-9
    assert abs(parc(torch.eye(3)[labels] * 5, labels) - 1) < 1e-6


def test_teachers_weigh_by_the_likeness_of_their_tasks_and_the_choice_is_told(context):
    told = []
    context = dataclasses.replace(context, emit=told.append)
    (policy,) = policies([SimilarTasks()], student(), context)
    good, noisy, specialist = policy.weights.tolist()
    assert good > specialist > noisy
    assert abs(sum(policy.weights.tolist()) - 1) < 1e-6
    step = drawn(context)
    expected = mean_of_probabilities(step.teacher, policy.weights.expand(24, 3))
    torch.testing.assert_close(policy.change(step).teacher, expected)
    assert next(note for note in told if isinstance(note, Note)).text.startswith("similar-teachers weighs teacher 0")
    (equal,) = policies([SimilarTasks(power=0.0)], student(), context)
    torch.testing.assert_close(equal.weights, torch.full((3,), 1 / 3))
    (nearest,) = policies([SimilarTasks(power=200.0)], student(), context)
    assert nearest.weights[GOOD] > 0.999


def test_teachers_that_know_nothing_of_the_task_count_alike(context):
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3)

    (policy,) = policies(
        [SimilarTasks()], student(), dataclasses.replace(context, teacher=Several([Silent(), Silent()]))
    )
    assert policy.weights.tolist() == [0.5, 0.5]


def test_without_labelled_calibration_samples_tasks_cannot_be_compared(context):
    split = context.data.calibration
    data = dataclasses.replace(context.data, calibration=Split(split.inputs, torch.full_like(split.labels, -1)))
    with pytest.raises(DataError, match="0 labelled samples"):
        policies([SimilarTasks()], student(), dataclasses.replace(context, data=data))


@pytest.mark.parametrize("strategy", [ReinforcedTeachers(), SimilarTasks()])
def test_a_training_that_weighs_teachers_and_was_killed_ends_with_the_same_bytes(context, tmp_path, strategy):
    training = Training(
        epochs=3, batch=64, checkpoint_seconds=1e-6, objectives=(HardLabels(), SoftTargets()), strategies=(strategy,)
    )
    same_bytes_after_a_kill(student, context, training, 4, tmp_path / "whole")
