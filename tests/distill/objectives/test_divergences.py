"""Divergences: their limits, bounds and what clipping does to the gradient."""

import math

import logit_references as references
import numpy as np
import pytest
import torch

from kdc.distill.objectives.decoupled import dkd
from kdc.distill.objectives.divergences import (
    adaptive_alpha,
    alpha_divergence,
    balanced_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
)
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.normalised import dist, luminet, standardised_kd


def drawn(seed: int, *shape: int, size: float = 2.0) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = drawn(1, 6, 5), drawn(2, 6, 5)
FAR = (torch.tensor([[200.0, 0.0, 0.0]]).double(), torch.tensor([[0.0, 200.0, 0.0]]).double())  # no overlap at all


def gradient(loss, student: torch.Tensor) -> torch.Tensor:
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def test_alpha_tends_to_the_two_kullback_leibler_divergences():
    forward, backward = soft_targets(STUDENT, TEACHER, 2.0), reverse_kl(STUDENT, TEACHER, 2.0)
    torch.testing.assert_close(alpha_divergence(STUDENT, TEACHER, 2.0, 1 - 2e-3), forward, rtol=5e-3, atol=0)
    torch.testing.assert_close(alpha_divergence(STUDENT, TEACHER, 2.0, 2e-3), backward, rtol=5e-3, atol=0)


def test_alpha_of_a_half_is_symmetric():
    one, other = (alpha_divergence(*pair, 1.0, 0.5) for pair in ((STUDENT, TEACHER), (TEACHER, STUDENT)))
    torch.testing.assert_close(one, other)


def test_jensen_shannon_is_symmetric_and_at_most_the_logarithm_of_two():
    one, other = (jensen_shannon(*pair, 1.0, 0.5) for pair in ((STUDENT, TEACHER), (TEACHER, STUDENT)))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(jensen_shannon(*FAR, 1.0, 0.5), torch.tensor([math.log(2)]).double())


@pytest.mark.parametrize("objective", [skew_kl, skew_reverse_kl])
def test_a_skew_divergence_is_bounded_where_kl_is_not(objective):
    torch.testing.assert_close(objective(*FAR, 1.0, 0.1), torch.tensor([math.log(10)]).double())
    assert soft_targets(*FAR, 1.0) > 100


def test_adaptive_alpha_takes_the_larger_divergence_example_by_example():
    sure = torch.tensor([[4.0, 0.0, 0.0], [0.4, 0.0, 0.0]]).double()
    student = sure.flip(0)  # first less sure than its teacher, then surer
    ends = torch.stack([adaptive_alpha(student, sure, 1.0, order, order, 5.0) for order in (-1.0, 1.0)])
    found = adaptive_alpha(student, sure, 1.0, -1.0, 1.0, 5.0)
    torch.testing.assert_close(found, ends.max(0).values)
    assert ends.argmax(0).tolist() == [0, 1]


def test_the_gradient_under_clipping_is_the_papers():
    """-E_q[rho grad log q] with rho = clipped (p/q)^alpha / alpha + 1 / (alpha (alpha - 1)), written out class by class."""
    order, clip = -1.0, 5.0
    student, teacher = drawn(3, 4, 5, size=3.0), drawn(4, 4, 5, size=3.0)
    expected = np.zeros((4, 5))
    clipped = 0
    for i in range(4):
        q, p = references.softmax(student[i].tolist()), references.softmax(teacher[i].tolist())
        for c in range(5):
            power = (p[c] / q[c]) ** order
            clipped += power > clip
            rho = min(power, clip) / order + 1 / (order * (order - 1))
            for k in range(5):
                expected[i, k] -= q[c] * rho * ((c == k) - q[k])
    assert clipped > 0
    found = gradient(lambda s: adaptive_alpha(s, teacher, 1.0, order, order, clip), student)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_a_class_that_the_student_gave_up_is_pulled_up_though_its_ratio_is_clipped():
    student, teacher = torch.tensor([[8.0, 0.0]]).double(), torch.tensor([[0.0, 8.0]]).double()
    found = gradient(lambda s: adaptive_alpha(s, teacher, 1.0, 2.0, 2.0, 5.0), student)
    assert found[0, 1] < 0 < found[0, 0]


def test_bd_kd_weighs_the_forward_divergence_of_a_student_that_is_too_sure():
    student, teacher = torch.tensor([[5.0, 0.0, 0.0]]).double(), torch.tensor([[1.0, 0.0, 0.0]]).double()
    forward, backward = soft_targets(student, teacher, 1.0), reverse_kl(student, teacher, 1.0)
    torch.testing.assert_close(balanced_kl(student, teacher, 1.0, 3.0), 3 * forward + backward)
    torch.testing.assert_close(balanced_kl(teacher, student, 1.0, 3.0), backward + 3 * forward)
    torch.testing.assert_close(balanced_kl(student, teacher, 1.0, 1.0), forward + backward)


def test_the_parts_of_dkd_add_up_to_hintons_divergence_with_the_teachers_own_weight():
    """KD = TCKD + (1 - p_t) NCKD: equation 5 of the paper."""
    labels, temperature = torch.tensor([0, 1, 2, 3, 4, 0]), 3.0
    target = dkd(STUDENT, TEACHER, labels, temperature, 1.0, 0.0)
    others = dkd(STUDENT, TEACHER, labels, temperature, 0.0, 1.0)
    sure = (TEACHER / temperature).softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(target + (1 - sure) * others, soft_targets(STUDENT, TEACHER, temperature))


def test_dkd_of_two_classes_has_no_others_to_tell_apart():
    student, teacher, labels = STUDENT[:, :2], TEACHER[:, :2], torch.tensor([0, 1, 0, 1, 0, 1])
    found = dkd(student, teacher, labels, 2.0, 1.0, 8.0)
    torch.testing.assert_close(found, soft_targets(student, teacher, 2.0))


def test_standardised_logits_have_no_size():
    torch.testing.assert_close(
        standardised_kd(0.01 * TEACHER + 3, TEACHER, 2.0), torch.zeros(6).double(), atol=1e-6, rtol=0
    )


def test_standardising_equal_logits_gives_no_infinite_gradient():
    assert torch.isfinite(gradient(lambda s: standardised_kd(s, TEACHER, 2.0), torch.zeros_like(TEACHER))).all()


def test_luminet_sees_no_size_and_no_offset_of_a_class():
    changed = TEACHER * torch.tensor([1.0, 3.0, 2.0, 4.0, 5.0]) + torch.arange(5)
    torch.testing.assert_close(luminet(changed, TEACHER, 4.0), torch.zeros(6).double(), atol=1e-6, rtol=0)


def test_luminet_and_dist_of_one_example_see_no_spread():
    assert luminet(STUDENT[:1], TEACHER[:1], 4.0) == 0
    assert dist(STUDENT[:1], TEACHER[:1], 1.0, 0.0, 1.0) == 0


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 2.0), (1.0, 0.0), (0.0, 1.0)])
def test_the_mean_of_dist_is_the_papers_loss(beta, gamma):
    expected = references.dist_mean(STUDENT.numpy(), TEACHER.numpy(), None, 4.0, beta, gamma)
    assert float(dist(STUDENT, TEACHER, 4.0, beta, gamma).mean()) == pytest.approx(expected)
