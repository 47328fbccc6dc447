"""Several teachers: their answers as one target, and a loss for each with some left out."""

import dataclasses

import numpy as np
import pytest
import torch
from answering import teacher_outputs
from blobs import Good, Noisy, Specialist, same_bytes_after_a_kill, student, with_blobs
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.distill.logit_settings import MovingTarget
from kdc.distill.loop import train
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.several import (
    Several,
    by_confidence,
    by_entropy,
    label_costs,
    mean_of_logits,
    mean_of_probabilities,
)
from kdc.distill.strategies.teacher_dropping import kept_teachers
from kdc.distill.strategy_settings.several import Combined, TeacherDropping
from kdc.distill.teacher import predict
from kdc.distill.views import view


@pytest.fixture
def context(small_context):
    return with_blobs(small_context, Several([Good(), Noisy(), Specialist(0)]))


def drawn(context, n: int = 12, stored: bool = True) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    teacher = context.teacher(*samples.inputs) if stored else None
    return Drawn(number=3, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=teacher)


def batch_of(step: Drawn, outputs: torch.Tensor) -> Batch:
    return Batch(
        number=step.number, index=step.index, inputs=step.inputs, labels=step.labels, student=outputs,
        teacher=step.teacher, others=step.others, share=step.share,
    )  # fmt: skip


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max())
    return e / e.sum()


def test_outputs_are_stacked_by_teacher_and_stay_in_evaluation_mode_when_stored(context):
    dropout = nn.Sequential(Good(), nn.Dropout(0.5))
    context = dataclasses.replace(context, teacher=Several([Good(), dropout.train()]))
    seen = view(context.data, 0, 0)
    stored = teacher_outputs(context, seen)
    assert stored.shape == (len(seen.samples), 2, 3)
    for k in range(2):
        assert torch.equal(stored[:, k], predict(Good(), seen.samples))
    assert torch.equal(teacher_outputs(context, seen), stored)


def test_teachers_of_unlike_classes_are_refused_and_so_is_one_alone(small_context):
    with pytest.raises(ModelError, match=r"teacher 0 \['batch', 3\], teacher 1 \['batch', 5\]"):
        Several([Good(), nn.Linear(6, 5)])(torch.zeros(2, 6))
    with pytest.raises(ModelError, match="two teachers or more"):
        Several([Good()])
    with pytest.raises(ModelError, match="combined-teachers needs several teachers"):
        policies([Combined()], student(), small_context)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_softmax_at_the_temperature_of_the_combined_target_is_the_weighted_mean_of_the_teachers(temperature):
    stack, weights = logits(5, 3, 4), torch.softmax(logits(5, 3, seed=1), 1)
    got = torch.softmax(mean_of_probabilities(stack, weights, temperature) / temperature, -1).numpy()
    for i in range(5):
        expected = sum(weights[i, k].item() * softmax(stack[i, k].numpy() / temperature) for k in range(3))
        np.testing.assert_allclose(got[i], expected, rtol=1e-12)
    equal = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(mean_of_probabilities(stack), mean_of_probabilities(stack, equal))


def test_the_mean_of_logits_is_the_normalised_geometric_mean_of_probabilities():
    stack, weights = logits(5, 3, 4), torch.softmax(logits(5, 3, seed=1), 1)
    got = torch.softmax(mean_of_logits(stack, weights), -1).numpy()
    for i in range(5):
        product = np.ones(4)
        for k in range(3):
            product *= softmax(stack[i, k].numpy()) ** weights[i, k].item()
        np.testing.assert_allclose(got[i], product / product.sum(), rtol=1e-10)
    torch.testing.assert_close(mean_of_logits(stack), stack.mean(1))


def test_the_divergence_from_the_mean_of_probabilities_differs_from_the_teachers_mean_divergence_by_a_constant():
    # The reason why weighing per-teacher losses and weighing their probabilities are one, for the student's gradient.
    stack, weights = logits(6, 3, 4), torch.softmax(logits(6, 3, seed=1), 1)
    gaps = []
    for seed in (2, 3):
        answer = logits(6, 4, seed=seed)
        one = soft_targets(answer, mean_of_probabilities(stack, weights, 2.0), 2.0)
        each = sum(weights[:, k] * soft_targets(answer, stack[:, k], 2.0) for k in range(3))
        gaps.append(each - one)
    torch.testing.assert_close(gaps[0], gaps[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_combinations_are_finite_for_extreme_logits(dtype):
    stack = torch.tensor([[[3e4, -3e4, 0.0], [-3e4, 3e4, 0.0]]], dtype=dtype)
    weights = by_entropy(stack)
    for value in (mean_of_probabilities(stack, weights), mean_of_logits(stack, weights), weights):
        assert torch.isfinite(value).all()
    torch.testing.assert_close(weights, torch.full((1, 2), 0.5))
    none_of_one = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(
        torch.softmax(mean_of_probabilities(stack, none_of_one), -1), torch.tensor([[1.0, 0.0, 0.0]])
    )


def test_confidence_weights_are_those_of_the_formula_and_follow_the_label():
    costs = logits(4, 3).abs()
    got = by_confidence(costs).numpy()
    for i in range(4):
        e = np.exp(costs[i].numpy())
        np.testing.assert_allclose(got[i], [(1 - e[k] / e.sum()) / 2 for k in range(3)], rtol=1e-12)
    torch.testing.assert_close(by_confidence(costs).sum(1), torch.ones(4, dtype=torch.float64))
    assert (by_confidence(costs).argmax(1) == costs.argmin(1)).all()


def test_entropy_weights_are_those_of_the_formula():
    stack = logits(4, 3, 5)
    got = by_entropy(stack).numpy()
    for i in range(4):
        h = []
        for k in range(3):
            p = softmax(stack[i, k].numpy())
            h.append(-sum(p * np.log(p)))
        np.testing.assert_allclose(got[i], [(1 - x / sum(h)) / 2 for x in h], rtol=1e-10)


def test_costs_of_labels_count_shares_of_mixed_samples_and_nothing_for_unlabelled_ones(context):
    step = drawn(context, 3)
    step = dataclasses.replace(
        step, labels=torch.tensor([0, -1, 2]), others=torch.tensor([1, -1, 2]), share=torch.tensor([0.25, 0.5, 0.5])
    )
    got = label_costs(step.teacher, step)
    log_p = torch.log_softmax(step.teacher, -1)
    torch.testing.assert_close(got[0], -0.25 * log_p[0, :, 0] - 0.75 * log_p[0, :, 1])
    assert (got[1] == 0).all()
    torch.testing.assert_close(got[2], -log_p[2, :, 2])


@pytest.mark.parametrize("stored", [True, False])
def test_objectives_see_one_target_of_all_teachers(context, stored):
    step = drawn(context, stored=stored)
    stack = context.teacher(*step.inputs)
    (equal,) = policies([Combined()], student(), context)
    torch.testing.assert_close(equal.change(step).teacher.exp(), torch.softmax(stack, -1).mean(1))
    (of_logits,) = policies([Combined(mean_of="logits")], student(), context)
    torch.testing.assert_close(of_logits.change(step).teacher, stack.mean(1))
    (trusting,) = policies([Combined(weights="confidence")], student(), context)
    expected = mean_of_probabilities(stack, by_confidence(label_costs(stack, step)))
    torch.testing.assert_close(trusting.change(step).teacher, expected)
    (certain,) = policies([Combined(weights="entropy")], student(), context)
    torch.testing.assert_close(certain.change(step).teacher, mean_of_probabilities(stack, by_entropy(stack)))


def test_two_strategies_that_combine_are_refused(context):
    training = Training(epochs=1, strategies=(Combined(), TeacherDropping()))
    with pytest.raises(ModelError, match="a strategy before it has made one target"):
        train(student(), context, training)


def test_several_teachers_without_a_strategy_that_combines_them_are_refused(context):
    with pytest.raises(ModelError, match=r"3 teachers give as many\n.*combined-teachers"):
        train(student(), context, Training(epochs=1))


def test_confidence_outvotes_a_noisy_teacher_where_the_mean_does_not(context):
    def right(settings: Combined) -> float:
        (policy,) = policies([settings], student(), context)
        step = drawn(context, 96)
        return (policy.change(step).teacher.argmax(1) == step.labels).float().mean().item()

    assert right(Combined(weights="confidence")) > right(Combined()) + 0.05


def test_the_largest_loss_is_always_kept_and_others_with_the_probability():
    losses = logits(4000, 4, dtype=torch.float32)
    kept = kept_teachers(losses, 0.3, torch.Generator().manual_seed(7))
    largest = functional.one_hot(losses.argmax(1), 4).bool()
    assert (kept[largest] == 1).all()
    share = kept[~largest].mean().item()
    assert abs(share - 0.7) < 5 * (0.3 * 0.7 / 12000) ** 0.5
    assert torch.equal(kept_teachers(losses, 0.0, torch.Generator()), torch.ones(4000, 4))
    assert torch.equal(kept_teachers(losses, 1.0, torch.Generator()), largest.float())


def test_the_loss_is_the_mean_over_kept_pairs_of_sample_and_teacher(context):
    objective = SoftTargets(temperature=2.0, weight=0.5)
    (policy,) = policies([TeacherDropping(objective=objective, probability=0.5)], student(), context)
    step = drawn(context)
    batch = batch_of(policy.change(step), student().eval()(*step.inputs).detach().requires_grad_())
    values = policy.loss(batch)
    each = torch.stack([0.5 * soft_targets(batch.student, step.teacher[:, k], 2.0) for k in range(3)], 1)
    # Which pairs are kept can be read from the loss: the number of them divides all.
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    scaled = values.detach() / len(values)
    assert any(
        all((total_kept * scaled[i] - (masks * each[i].detach()).sum(1)).abs().min() < 1e-5 for i in range(len(values)))
        for total_kept in range(len(values), 3 * len(values) + 1)
    )
    torch.testing.assert_close(policy.loss(batch), values)  # the same mask for the same step
    assert not torch.equal(policy.loss(dataclasses.replace(batch, name="4")), values)
    values.mean().backward()
    assert torch.isfinite(batch.student.grad).all()
    # With none left out, it is the mean over teachers and samples; with all, the largest alone.
    for probability, expected in ((0.0, each.mean(1)), (1.0, each.amax(1))):
        (whole,) = policies([TeacherDropping(objective=objective, probability=probability)], student(), context)
        whole.change(step)
        torch.testing.assert_close(whole.loss(batch), expected)


def test_dropping_pulls_the_student_to_the_teacher_it_is_farthest_from(context):
    # One teacher that answers A against two that answer B: the mean leaves the first, dropping goes some way to it.
    class Fixed(nn.Module):
        def __init__(self, *values: float) -> None:
            super().__init__()
            self.register_buffer("values", torch.tensor(values))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.values.expand(len(x), -1)

    context = dataclasses.replace(context, teacher=Several([Fixed(2, 0, 0), Fixed(0, 2, 0), Fixed(0, 2, 0)]))

    def distance(probability: float) -> float:
        free = nn.Parameter(torch.zeros(12, 3))
        settings = TeacherDropping(objective=SoftTargets(temperature=1.0, weight=1.0), probability=probability)
        (policy,) = policies([settings], student(), context)
        optimizer = torch.optim.SGD([free], 0.5)
        step = policy.change(drawn(context))
        for number in range(400):
            optimizer.zero_grad()
            policy.loss(dataclasses.replace(batch_of(step, free), number=number)).mean().backward()
            optimizer.step()
        p = torch.softmax(free.detach(), 1).mean(0)
        return (p[0] - p[1]).abs().item()

    assert distance(0.9) < distance(0.0) - 0.05


def test_each_teacher_has_a_moving_target_of_its_own(context):
    (policy,) = policies([TeacherDropping(objective=MovingTarget())], student(), context)
    assert len(policy.trained) == 3


def test_an_objective_of_another_level_than_the_others_is_refused_inside_a_strategy_too():
    with pytest.raises(ValidationError, match="bckd"):
        Training(strategies=({"kind": "teacher-dropping", "objective": {"kind": "bckd"}},))


@pytest.mark.parametrize("strategy", [Combined(weights="confidence"), TeacherDropping()])
def test_a_training_with_several_teachers_that_was_killed_ends_with_the_same_bytes(context, tmp_path, strategy):
    training = Training(
        epochs=3, batch=64, checkpoint_seconds=1e-6, objectives=(HardLabels(), SoftTargets()), strategies=(strategy,)
    )
    same_bytes_after_a_kill(student, context, training, 4, tmp_path / "whole")
