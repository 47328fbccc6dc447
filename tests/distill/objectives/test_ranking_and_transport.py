"""Rankings, transport between examples, and classes one by one."""

import itertools

import logit_references as references
import pytest
import torch
from torch.nn import functional as F

from kdc.distill.objectives.binary import binary
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.ranking import amplified, plackett_luce, top_scaled
from kdc.distill.objectives.transport import sinkhorn


def drawn(seed: int, *shape: int, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([3, 0, 1, 4])


def test_plackett_luce_with_a_teacher_sure_of_the_label_is_cross_entropy():
    student = drawn(1, 4, 5)
    teacher = torch.zeros(4, 5).double().scatter(1, LABELS.unsqueeze(1), 200.0)
    expected = F.cross_entropy(student, LABELS, reduction="none")
    torch.testing.assert_close(plackett_luce(student, teacher, LABELS, 1.0), expected)


def test_plackett_luce_is_convex_in_the_students_logits():
    teacher, one, other = drawn(2, 4, 5), drawn(3, 4, 5, size=5.0), drawn(4, 4, 5, size=5.0)
    ends = torch.stack([plackett_luce(s, teacher, LABELS, 1.0) for s in (one, other)])
    for share in (0.1, 0.5, 0.9):
        between = plackett_luce(share * one + (1 - share) * other, teacher, LABELS, 1.0)
        assert (between < share * ends[0] + (1 - share) * ends[1]).all()


def test_plackett_luce_of_a_teacher_that_is_right_is_least_for_its_own_order():
    teacher, label = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).double(), torch.tensor([2])
    values = {
        order: float(plackett_luce(torch.tensor([order]).double(), teacher, label, 1.0))
        for order in itertools.permutations([0.0, 1.0, 2.0, 3.0])
    }
    assert min(values, key=values.__getitem__) == (1.0, 2.0, 3.0, 0.0)


def test_amplified_logits_are_the_top_ones_and_a_label_outside_of_them():
    teacher, label = torch.tensor([[4.0, 2.0, 1.0, 0.0, -1.0]]).double(), torch.tensor([[3]])
    found = amplified(teacher, label, 2, 0.5)
    shift = 0.5 * (3.0 - 0.0)  # means of the two largest and of the other three
    expected = [[4.0 * 1.5 + shift, 2.0 * 1.25 + shift, 1.0, 0.0 * 1.5 + shift, -1.0]]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_amplifying_by_nothing_changes_nothing():
    teacher = drawn(1, 4, 6)
    assert torch.equal(amplified(teacher, LABELS.unsqueeze(1), 2, 0.0), teacher)


def test_topkd_sees_no_size_of_the_students_logits():
    student, teacher = drawn(1, 4, 6), drawn(2, 4, 6)
    settings = {"top": 2, "scale": 0.5, "alpha": 1.0, "beta": 1.0, "temperature": 0.1}
    small, large = (top_scaled(size * student, teacher, LABELS, **settings) for size in (1.0, 7.0))
    torch.testing.assert_close(small, large)


def test_topkd_with_more_in_a_group_than_half_the_classes_takes_half():
    student, teacher = drawn(1, 4, 6), drawn(2, 4, 6)
    settings = {"scale": 0.5, "alpha": 1.0, "beta": 1.0, "temperature": 0.1}
    half, more = (top_scaled(student, teacher, LABELS, top=top, **settings) for top in (3, 50))
    assert torch.equal(half, more)


def test_the_sinkhorn_cost_tends_to_that_of_the_cheapest_assignment():
    student, teacher = drawn(1, 5, 4), drawn(2, 5, 4)
    q, p = ([references.softmax(row.tolist()) for row in logits] for logits in (student, teacher))
    cost = [[sum(abs(x - y) for x, y in zip(a, b, strict=True)) for b in p] for a in q]
    found = float(sinkhorn(student, teacher, 1.0, 0.003, 3000).sum())
    assert found == pytest.approx(references.cheapest_assignment(cost), rel=1e-3)


def test_the_sinkhorn_cost_of_equal_outputs_goes_away_with_the_blur():
    outputs = drawn(1, 5, 4)
    costs = [float(sinkhorn(outputs, outputs, 1.0, blur, 50).mean()) for blur in (1.0, 0.3, 0.1, 0.01)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 1e-6 < costs[0]


def test_the_sinkhorn_cost_is_finite_and_bounded_without_any_overlap():
    student, teacher = (torch.eye(4).double()[order] * 500 for order in ([0, 0, 1, 1], [2, 2, 3, 3]))
    torch.testing.assert_close(sinkhorn(student, teacher, 1.0, 0.1, 20), torch.full((4,), 2.0).double())


def test_only_the_binary_loss_has_its_optimum_at_the_teachers_own_scores():
    teacher = drawn(1, 4, 6)
    assert (binary(teacher + 1, teacher, 1.0) > 0.01).all()
    assert (soft_targets(teacher + 1, teacher, 1.0) < 1e-12).all()
