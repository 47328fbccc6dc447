"""Approximate likelihood matching as a recipe names it: outputs [batch, tokens, vocabulary], spans of labels."""

import math

import numpy as np
import pytest
import torch

from kdc.core.errors import ModelError
from kdc.distill.logit_settings import Likelihoods
from kdc.distill.objectives.vocabulary import likelihoods_of_labels
from kdc.distill.policies import function_of, policies
from kdc.distill.policy import Batch

LABELS = torch.tensor([[1, 0, 3, 2, -100], [2, 2, -100, -100, -100], [-100, 1, 4, -100, 0]])


def drawn(seed: int, vocabulary: int = 5, size: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn((3, 5, vocabulary), generator=generator, dtype=torch.float64)).to(dtype)


def reference(student, teacher, labels, span, temperature):
    """Coins that fall on a span, one by one."""
    values = []
    for s, t, own in zip(student, teacher, labels, strict=True):
        divergences = []
        for start in range(0, len(own), span):
            places = [i for i in range(start, min(start + span, len(own))) if own[i] >= 0]
            if not places:
                continue
            coins = []
            for logits in (s, t):
                log = sum(logits[i][own[i]] - math.log(sum(math.exp(x) for x in logits[i])) for i in places)
                coins.append(math.exp(log / temperature - 1e-6))
            q, p = coins
            divergences.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        values.append(sum(divergences) / max(1, len(divergences)))
    return values


@pytest.mark.parametrize(("span", "temperature"), [(1, 1.0), (2, 100.0), (3, 5.0), (9, 1.0)])
def test_it_is_the_divergence_of_coins_over_spans_of_labels(span, temperature):
    student, teacher = drawn(1), drawn(2)
    found = likelihoods_of_labels(student, teacher, LABELS, span, temperature)
    expected = reference(student.numpy(), teacher.numpy(), LABELS.numpy(), span, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8)
    assert torch.autograd.gradcheck(
        lambda s: likelihoods_of_labels(s, teacher, LABELS, span, temperature), student.requires_grad_()
    )


def test_equal_likelihoods_cost_nothing_whatever_the_other_tokens():
    teacher = drawn(2)
    assert likelihoods_of_labels(teacher, teacher, LABELS, 2, 1.0).abs().max() == 0
    larger = torch.cat([teacher, torch.full((3, 5, 4), -1e9, dtype=torch.float64)], 2)
    assert likelihoods_of_labels(larger, teacher, LABELS, 2, 1.0).abs().max() < 1e-12
    assert (likelihoods_of_labels(drawn(1), teacher, LABELS, 1, 1.0) > 0).all()


def test_an_example_without_labels_costs_nothing_and_the_batchs_order_is_no_matter():
    none = torch.full_like(LABELS, -100)
    assert likelihoods_of_labels(drawn(1), drawn(2), none, 2, 1.0).abs().max() == 0
    order = torch.tensor([2, 0, 1])
    values = likelihoods_of_labels(drawn(1), drawn(2), LABELS, 2, 1.0)
    again = likelihoods_of_labels(drawn(1)[order], drawn(2)[order], LABELS[order], 2, 1.0)
    torch.testing.assert_close(again, values[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [3.0, 1e4])
def test_values_and_gradients_are_finite_for_extreme_logits_and_in_half_precision(dtype, size):
    student = drawn(1, size=size, dtype=dtype).requires_grad_()
    value = likelihoods_of_labels(student, drawn(2, size=size, dtype=dtype), LABELS, 2, 100.0)
    (gradient,) = torch.autograd.grad(value.mean(), student)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def batch_of(labels: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> Batch:
    return Batch(index=torch.arange(len(labels)), labels=labels, student=student, teacher=teacher)


def test_a_recipe_names_it_for_tokens_and_is_refused_for_classification(small_context):
    settings = Likelihoods(span=2, weight=3.0)
    (policy,) = policies([settings], torch.nn.Identity(), small_context)
    student, teacher = drawn(1), drawn(2)
    expected = function_of(settings)(student, teacher, LABELS, span=2, temperature=100.0)
    torch.testing.assert_close(policy.loss(batch_of(LABELS, student, teacher)), 3 * expected)
    with pytest.raises(ModelError, match=r"\[batch, tokens, vocabulary\].*\[5, 5\](.|\n)*to classify, take `kd`"):
        policy.loss(batch_of(torch.zeros(5, dtype=torch.long), student[0], teacher[0]))


def test_a_label_outside_of_one_vocabulary_is_named():
    with pytest.raises(ModelError, match="a label is 4; the student has 5 tokens, the teacher 4\n.*`uld`"):
        likelihoods_of_labels(drawn(1), drawn(2, 4), LABELS, 1, 1.0)
