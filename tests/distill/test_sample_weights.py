"""Weights of each sample's own: by the teacher's confidence, and against noisy labels."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.confidence import confidence_weights, permuted
from kdc.distill.strategies.noise import doubt
from kdc.distill.strategy_settings.weights import NoisyLabels, PermutedAnswers, TeacherConfidence


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(teacher: torch.Tensor, labels: torch.Tensor, **more: object) -> Batch:
    return Batch(
        index=torch.arange(len(labels)), labels=labels, student=torch.zeros_like(teacher), teacher=teacher, **more
    )


class Given(Policy):
    """A loss that is given, so that what is done to it can be seen."""

    def __init__(self, of_labels: bool) -> None:
        self.of_labels = of_labels


LABELS, TEACHER = Given(True), Given(False)


def weighed(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What a loss of 1 of the labels, and of the teacher, count for each sample."""
    ones = torch.ones(len(batch.labels))
    found = policy.weigh(batch, {LABELS: ones, TEACHER: ones})
    return found[LABELS], found[TEACHER]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_confidence_weights_are_the_teachers_largest_probabilities_in_shares_of_their_mean(dtype):
    logits = (3 * torch.randn((7, 4), generator=seeded(0))).to(dtype)
    expected = []
    for row in logits.double().numpy():
        powers = [np.exp(value - max(row)) for value in row]
        expected.append(max(powers) / sum(powers))
    expected = np.array(expected) * len(expected) / sum(expected)
    np.testing.assert_allclose(confidence_weights(logits).double().numpy(), expected, rtol=1e-5)


def test_confidence_weights_do_not_depend_on_a_shift_and_stay_finite_for_extreme_logits():
    logits = torch.randn((6, 3), generator=seeded(1))
    torch.testing.assert_close(confidence_weights(logits + 100), confidence_weights(logits))
    order = torch.randperm(6, generator=seeded(2))
    torch.testing.assert_close(confidence_weights(logits[order]), confidence_weights(logits)[order])
    assert torch.isfinite(confidence_weights(torch.tensor([[1e4, -1e4], [0.0, 0.0]]))).all()


@pytest.mark.parametrize("on", ["labels", "teacher", "both"])
def test_cwtm_weights_the_losses_it_is_told_to_and_a_sure_teacher_counts_more(small_context, on):
    (policy,) = policies([TeacherConfidence(on=on)], nn.Identity(), small_context)
    teacher = torch.tensor([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]])  # sure of a wrong class, and not sure of the right one
    of_labels, of_teacher = weighed(policy, batch_of(teacher, torch.tensor([1, 0])))
    for name, found in (("labels", of_labels), ("teacher", of_teacher)):
        if on in (name, "both"):
            assert found[0] > 1 > found[1]
            torch.testing.assert_close(found.mean(), torch.tensor(1.0))
        else:
            assert torch.equal(found, torch.ones(2))


def test_permuted_answers_keep_the_largest_in_its_place_and_the_values_of_the_others():
    logits = torch.randn((200, 5), generator=seeded(3))
    made = permuted(logits, seeded(4))
    largest = logits.argmax(1, keepdim=True)
    assert torch.equal(made.gather(1, largest), logits.gather(1, largest))
    assert torch.equal(made.sort(1).values, logits.sort(1).values)
    assert torch.equal(made, permuted(logits, seeded(4)))


def test_each_order_of_the_other_classes_is_as_likely():
    made = permuted(torch.tensor([[0.0, 9.0, 1.0, 2.0]]).expand(6000, 4), seeded(5))
    orders, counts = made.unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert (counts - 1000).abs().max() < 5 * (6000 * (1 / 6) * (5 / 6)) ** 0.5


def test_dkpp_permutes_what_the_objectives_see_whether_the_teacher_was_asked_or_stored(small_context):
    (policy,) = policies([PermutedAnswers()], nn.Identity(), small_context)
    inputs = small_context.data.train.inputs[0][:16]
    asked = small_context.teacher(inputs)
    drawn = Drawn(number=5, index=torch.arange(16), inputs=(inputs,), labels=torch.zeros(16), teacher=asked)
    made = policy.change(drawn).teacher
    assert not torch.equal(made, asked)
    assert torch.equal(made.sort(1).values, asked.sort(1).values)
    torch.testing.assert_close(policy.change(dataclasses.replace(drawn, teacher=None)).teacher, made)
    assert not torch.equal(policy.change(dataclasses.replace(drawn, number=6)).teacher, made)


def test_doubt_is_what_the_teacher_gives_other_classes_and_nothing_for_the_very_mixture():
    teacher = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).clamp_min(1e-9).log()
    target = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(doubt(target, teacher), torch.tensor([0.8, 0.0]), atol=1e-6, rtol=1e-6)


def test_the_share_of_the_teacher_may_pass_one_and_labels_then_count_against_themselves(small_context):
    (policy,) = policies([NoisyLabels(xi=1.5)], nn.Identity(), small_context)
    teacher = torch.randn((4, 3), generator=seeded(6))
    of_labels, of_teacher = weighed(policy, batch_of(teacher, torch.tensor([0, 1, 2, -1])))
    torch.testing.assert_close(of_teacher, torch.tensor([1.5, 1.5, 1.5, 1.0]))
    torch.testing.assert_close(of_labels, torch.tensor([-0.5, -0.5, -0.5, 0.0]))


def test_noisy_samples_are_weighted_down_below_nothing_and_believed_ones_keep_their_labels(small_context):
    (policy,) = policies([NoisyLabels(xi=1.5, by_sample=True)], nn.Identity(), small_context)
    teacher = 6 * functional.one_hot(torch.arange(30) % 3, 3).float()
    labels = torch.arange(30) % 3
    labels[:10] = (labels[:10] + 1) % 3  # ten noisy ones
    of_labels, of_teacher = weighed(policy, batch_of(teacher, labels))
    assert of_labels[:10].max() < -0.4
    assert of_teacher[:10].min() > 1.4
    assert of_labels[10:].min() > 0.9
    torch.testing.assert_close(of_labels + of_teacher, torch.ones(30))


@pytest.mark.parametrize(("noise", "above"), [(20.0, True), (0.05, False)])
def test_under_strong_noise_the_best_share_of_the_teacher_is_above_one(small_context, noise, above):
    # Ridge regression, where the minimum of the weighted losses is known: the share enters through the policy.
    generator = np.random.default_rng(0)
    n, d, ridge = 60, 10, 30.0
    errors = dict.fromkeys(np.linspace(0, 3, 31).round(1), 0.0)
    for _ in range(20):
        x, truth = generator.standard_normal((n, d)), np.ones(d)
        y = x @ truth + noise * generator.standard_normal(n)
        inverse = np.linalg.inv(x.T @ x + ridge * np.eye(d))
        taught = x @ (inverse @ x.T @ y)
        for xi in errors:
            (policy,) = policies([NoisyLabels(xi=xi)], nn.Identity(), small_context)
            on_labels, on_teacher = (
                weights.double().numpy()
                for weights in weighed(policy, batch_of(torch.zeros((n, 3)), torch.zeros(n).long()))
            )
            # d/dw of sum_i on_labels_i (x_i w - y_i)^2 + on_teacher_i (x_i w - t_i)^2 + ridge |w|^2 is 0
            left = x.T @ ((on_labels + on_teacher)[:, None] * x) + ridge * np.eye(d)
            found = np.linalg.solve(left, x.T @ (on_labels * y + on_teacher * taught))
            errors[xi] += float(((found - truth) ** 2).sum())
    best = min(errors, key=errors.get)
    assert (best > 1) == above, best


def test_a_recipe_with_one_sort_of_loss_alone_has_nothing_to_weigh(small_context):
    training = Training(epochs=1, objectives=(SoftTargets(),), strategies=(NoisyLabels(),))
    with pytest.raises(ModelError, match="none of labels"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), small_context, training)


@pytest.mark.parametrize("settings", [TeacherConfidence(), PermutedAnswers(), NoisyLabels(by_sample=True)])
def test_a_strategy_for_classifiers_refuses_other_teachers(small_context, settings):
    context = dataclasses.replace(small_context, teacher=nn.Identity())
    with pytest.raises(ModelError, match=f"{settings.kind} needs a classifier"):
        policies([settings], nn.Identity(), context)


def test_a_training_with_weights_of_samples_is_the_same_each_time_and_another_than_without(small_context, tmp_path):
    def made(name: str, *strategies: object) -> torch.Tensor:
        torch.manual_seed(0)
        student = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        objectives = (HardLabels(weight=1.0), SoftTargets())
        training = Training(epochs=2, batch=32, objectives=objectives, strategies=strategies)
        return train(student, dataclasses.replace(small_context, work=tmp_path / name), training)[1].weight

    plain = made("plain")
    for settings in (TeacherConfidence(), PermutedAnswers(), NoisyLabels(xi=1.2), NoisyLabels(by_sample=True)):
        name = f"{settings!r}"
        assert torch.equal(made(f"{name} 1", settings), made(f"{name} 2", settings))
        assert not torch.equal(made(f"{name} 3", settings), plain)
