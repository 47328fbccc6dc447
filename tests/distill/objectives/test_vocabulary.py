"""Outputs that are numbered otherwise, black boxes, few classes made many."""

import math

import logit_references as references
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdc.core.errors import DataError, ModelError
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.predictions import chosen_class, predictions, top_probabilities
from kdc.distill.objectives.subclasses import folded, subclass_directions, subclass_logits
from kdc.distill.objectives.vocabulary import aligned_spans, approximate_likelihood, span_log_likelihoods, uld


def drawn(seed: int, *shape: int, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uld_sees_no_numbering_of_either_vocabulary():
    student, teacher = drawn(1, 4, 6), drawn(2, 4, 6)
    shuffled = uld(student[:, [5, 1, 0, 2, 4, 3]], teacher, 1.0)
    torch.testing.assert_close(shuffled, uld(student, teacher, 1.0))


@pytest.mark.parametrize(("of_student", "of_teacher"), [(4, 7), (7, 4)])
def test_uld_pads_the_smaller_vocabulary_with_zeros(of_student, of_teacher):
    student, teacher = drawn(1, 3, of_student), drawn(2, 3, of_teacher)
    expected = references.uld(student.numpy(), teacher.numpy(), None, 2.0)
    np.testing.assert_allclose(uld(student, teacher, 2.0).numpy(), expected)
    assert torch.autograd.gradcheck(lambda s: uld(s, teacher, 2.0), student.requires_grad_())


def test_uld_of_other_lengths_is_refused():
    with pytest.raises(ModelError, match=r"\[2, 3, 5\].*\[2, 4, 5\]"):
        uld(torch.zeros(2, 3, 5), torch.zeros(2, 4, 5), 1.0)


def test_spans_end_where_both_tokenizations_have_a_boundary():
    text = "unfortunately so"
    words, letters = ["un", "fortunate", "ly", " so"], list(text)
    ends = [np.cumsum([len(token) for token in tokens]).tolist() for tokens in (words, letters)]
    spans = aligned_spans(*ends)
    assert len(spans) == 4
    for (first, last), (first_l, last_l) in spans:
        assert "".join(words[first:last]) == "".join(letters[first_l:last_l])


def test_spans_of_equal_tokenizations_are_their_tokens():
    assert aligned_spans([2, 5, 9], [2, 5, 9]) == [((i, i + 1), (i, i + 1)) for i in range(3)]


def test_a_token_without_bytes_belongs_to_the_span_before_it():
    assert aligned_spans([2, 2, 5], [2, 5]) == [((0, 2), (0, 1)), ((2, 3), (1, 2))]


def test_tokenizations_of_other_texts_are_refused():
    with pytest.raises(ModelError, match="one text"):
        aligned_spans([2, 5], [2, 6])


def test_a_spans_likelihood_is_the_product_of_its_tokens():
    logits, tokens = drawn(1, 2, 4, 5), torch.tensor([[0, 1, 2, 3], [4, 4, 0, 1]])
    span_of = torch.tensor([[0, 0, 1, -1], [0, 1, 1, 1]])
    found = span_log_likelihoods(logits, tokens, span_of, 2)
    for b in range(2):
        for span in range(2):
            p = math.prod(
                references.softmax(logits[b, i].tolist())[tokens[b, i]] for i in range(4) if span_of[b, i] == span
            )
            assert float(found[b, span]) == pytest.approx(math.log(p))


def test_approximate_likelihood_is_the_mean_divergence_of_the_spans_coins():
    student, teacher = -drawn(1, 3, 4).abs(), -drawn(2, 3, 4).abs()
    present = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    expected = []
    for b in range(3):
        coins = [
            [[math.exp(x / 10), 1 - math.exp(x / 10)] for x in (float(teacher[b, i]), float(student[b, i]))]
            for i in range(4)
            if present[b, i]
        ]
        expected.append(np.mean([references.kl(p, q) for p, q in coins]) if coins else 0.0)
    found = approximate_likelihood(student, teacher, present, 10.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-9)


def test_approximate_likelihood_is_nothing_at_equality_and_finite_at_certainty():
    certain, hopeless, present = torch.zeros(1, 1), torch.full((1, 1), -1e5), torch.ones(1, 1, dtype=torch.bool)
    for likelihood in (certain, hopeless):
        assert approximate_likelihood(likelihood, likelihood, present, 100.0) == 0
    for student, teacher in ((certain, hopeless), (hopeless, certain)):
        leaf = student.clone().requires_grad_()
        value = approximate_likelihood(leaf, teacher, present, 100.0)
        assert value > 1
        assert torch.isfinite(torch.autograd.grad(value.sum(), leaf)[0]).all()


def test_approximate_likelihood_has_the_gradient_of_its_value():
    student, teacher = -drawn(1, 3, 4).abs() - 0.1, -drawn(2, 3, 4).abs()
    present = torch.ones(3, 4, dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda s: approximate_likelihood(s, teacher, present, 10.0), student.requires_grad_()
    )


def test_a_black_box_that_tells_all_classes_is_no_black_box():
    student, teacher = drawn(1, 4, 5), drawn(2, 4, 5)
    for top in (4, 5, 9):  # four of five tell the fifth
        torch.testing.assert_close(predictions(student, teacher, top, False), soft_targets(student, teacher, 1.0))


def test_more_that_is_told_is_more_to_learn():
    student, teacher = drawn(1, 4, 5), drawn(2, 4, 5)
    values = [float(predictions(student, teacher, top, False).mean()) for top in (1, 2, 3, 4)]
    assert values == sorted(values)


def test_a_chosen_class_is_a_label():
    student, classes = drawn(1, 4, 5), torch.tensor([0, 4, 2, 2])
    torch.testing.assert_close(chosen_class(student, classes), F.cross_entropy(student, classes, reduction="none"))


def test_probabilities_rounded_above_one_leave_nothing_for_the_rest():
    student = drawn(1, 1, 5).requires_grad_()
    value = top_probabilities(student, torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.2500001]]))
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), student)[0]).all()


def test_told_classes_and_probabilities_of_other_shapes_are_refused():
    with pytest.raises(ModelError, match="told"):
        top_probabilities(torch.zeros(2, 5), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2))


@pytest.fixture
def embedded():
    """Embeddings of two classes that differ along the head, and vary most along one axis that it does not see."""
    noise, labels = drawn(5, 400, 6, size=1.0), torch.arange(400) % 2
    noise[:, 3] *= 10
    noise[:, 4] *= 4
    noise[:, 0] = 100.0 * labels + noise[:, 0] * 20  # the widest of all, but the head sees it
    head = torch.zeros(2, 6).double()
    head[0, 0], head[1, 0], head[1, 1] = -1.0, 1.0, 0.5
    return noise, labels, head


def test_subclasses_lie_along_the_widest_directions_that_the_head_does_not_see(embedded):
    embeddings, labels, head = embedded
    directions = subclass_directions(embeddings, labels, head, 2)
    assert directions.axes.shape == (2, 2, 6)
    units = F.normalize(directions.axes, dim=-1)
    assert (units[:, 0, 3] > 0.99).all()
    assert (units[:, 1, 4] > 0.95).all()
    torch.testing.assert_close(directions.axes @ head.T, torch.zeros(2, 2, 2).double(), atol=1e-9, rtol=0)


def test_subclass_probabilities_add_up_to_those_of_the_class(embedded):
    embeddings, labels, head = embedded
    logits = embeddings @ head.T / 50
    joint = subclass_logits(logits, embeddings, subclass_directions(embeddings, labels, head, 3), 1.0)
    assert joint.shape == (400, 6)
    torch.testing.assert_close(folded(joint, 3), logits.log_softmax(-1))
    spread = joint.exp().view(400, 2, 3) / logits.softmax(-1).unsqueeze(-1)
    assert spread.std(0).min() > 0.1  # the split is no even one


def test_without_sharpness_every_class_is_split_evenly(embedded):
    embeddings, labels, head = embedded
    logits = embeddings @ head.T / 50
    joint = subclass_logits(logits, embeddings, subclass_directions(embeddings, labels, head, 3), 0.0)
    torch.testing.assert_close(joint.exp(), logits.softmax(-1).repeat_interleave(3, 1) / 3)


def test_a_class_with_too_few_examples_for_its_subclasses_is_refused(embedded):
    embeddings, labels, head = embedded
    with pytest.raises(DataError, match="class 1 has 2 examples"):
        subclass_directions(embeddings[:5], labels[:5], head, 2)


def test_a_head_that_sees_all_directions_leaves_none_for_subclasses(embedded):
    embeddings, labels, head = embedded
    with pytest.raises(DataError, match="1 directions that the head does not see"):
        subclass_directions(embeddings[:, :3], labels, head[:, :3], 2)
