"""Targets on their way, and targets that were shifted."""

import math

import numpy as np
import pytest
import torch

from kdc.core.errors import ModelError
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.moving import Interpolation, delta_kd, taid


def drawn(seed: int) -> torch.Tensor:
    return 2 * torch.randn((5, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = drawn(1), drawn(2)
WAY = {"start": 0.4, "end": 1.0, "rate": 0.1, "decay": 0.9}


def test_the_way_of_taid_goes_from_the_student_itself_to_hintons_divergence():
    torch.testing.assert_close(taid(STUDENT, TEACHER, 0.0), torch.zeros(5).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(taid(STUDENT, TEACHER, 1.0), soft_targets(STUDENT, TEACHER, 1.0))


def test_the_gradient_of_taid_is_the_student_less_its_target():
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(taid(student, TEACHER, 0.3).sum(), student)
    target = (0.7 * STUDENT + 0.3 * TEACHER).softmax(-1)
    torch.testing.assert_close(gradient, STUDENT.softmax(-1) - target)


def test_the_first_step_only_remembers_its_loss():
    assert Interpolation(0.4).advanced(2.0, 0.5, **WAY) == Interpolation(0.4, 0.0, 2.0)


def test_a_step_is_the_papers():
    before = Interpolation(0.5, momentum=0.2, previous=2.0)
    after = before.advanced(1.5, 0.0, **WAY)
    momentum = 0.9 * 0.2 + 0.1 * (2.0 - 1.5) / 2.0
    assert after.momentum == pytest.approx(momentum)
    assert after.share == pytest.approx(0.5 + 0.1 * (1 - 0.5) / (1 + math.exp(-momentum)))
    assert after.previous == 1.5


def test_the_share_never_falls_is_never_behind_the_straight_line_and_ends_at_the_end():
    losses = np.random.default_rng(0).exponential(size=200)
    state, shares = Interpolation(WAY["start"]), []
    for step, loss in enumerate(losses):
        state = state.advanced(float(loss), step / 199, **{**WAY, "rate": 1e-3})
        shares.append(state.share)
    assert shares == sorted(shares)
    line = [0.4 + 0.6 * step / 199 for step in range(200)]
    assert all(share >= straight - 1e-12 for share, straight in zip(shares[1:], line[1:], strict=True))
    assert shares[-1] == 1.0


def test_a_falling_loss_hurries_the_target_on():
    def end(losses):
        state = Interpolation(0.4)
        for loss in losses:
            state = state.advanced(loss, 0.0, **WAY)
        return state.share

    assert end([1.0, 0.5, 0.25, 0.125]) > end([1.0, 1.0, 1.0, 1.0]) > end([1.0, 2.0, 4.0, 8.0])


def test_a_loss_that_jumps_from_nothing_does_not_overflow():
    assert math.isfinite(Interpolation(0.5, 0.0, 0.0).advanced(1e6, 0.1, **WAY).share)


def test_delta_kd_with_equal_bases_is_hintons_divergence():
    base = drawn(3)
    torch.testing.assert_close(delta_kd(STUDENT, base, TEACHER, base, 1.0), soft_targets(STUDENT, TEACHER, 1.0))


def test_delta_kd_of_a_teacher_that_was_not_shifted_keeps_the_students_beginnings():
    base = drawn(3)
    torch.testing.assert_close(delta_kd(base, base, TEACHER, TEACHER, 1.0), torch.zeros(5).double(), atol=1e-12, rtol=0)


def test_delta_kd_is_the_divergence_from_the_shifted_beginnings():
    base, teacher_base = drawn(3), drawn(4)
    for i, found in enumerate(delta_kd(STUDENT, base, TEACHER, teacher_base, 0.5)):
        p, pb, qb, q = (torch.softmax(x[i], 0).numpy() for x in (TEACHER, teacher_base, base, STUDENT))
        target = qb * (p / pb) ** 0.5
        target /= target.sum()
        assert float(found) == pytest.approx(float((target * np.log(target / q)).sum()))


def test_delta_kd_has_the_gradient_of_its_value():
    base, teacher_base = drawn(3), drawn(4)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: delta_kd(s, base, TEACHER, teacher_base, 1.0), student)


def test_delta_kd_with_bases_of_another_shape_is_refused():
    with pytest.raises(ModelError, match=r"\[5, 4\].*\[5, 3\]"):
        delta_kd(STUDENT, drawn(3)[:, :3], TEACHER, drawn(4)[:, :3], 1.0)
