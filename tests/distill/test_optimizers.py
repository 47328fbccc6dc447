"""The optimizers of the loop: DOT keeps two momenta apart, and is SGD where they are equal."""

import dataclasses

import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from moving import step
from networks import normal
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from kdc.distill.loop import train
from kdc.distill.optimizer_settings import AdamW, Dot, Sgd
from kdc.distill.optimizers import DistillationOriented, reached, two_momenta
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.stepping import Stepper


def network() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return normal(model, 3)


def training(optimizer: object, **changes: object) -> Training:
    given = {"epochs": 3, "batch": 32, "learning_rate": 0.05, "checkpoint_seconds": 1e-6, "optimizer": optimizer}
    return Training(objectives=(HardLabels(weight=0.5), SoftTargets()), **(given | changes))


def bytes_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_two_steps_of_dot_are_those_computed_by_hand():
    # One parameter p = 2, rate 0.1, momentum 0.9, delta 0.075; the gradients of labels and teacher do not depend on p.
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = DistillationOriented([{"params": [p], "weight_decay": 0.5}], 0.1, 0.9, 0.075)
    value, v_labels, v_teacher = 2.0, 0.0, 0.0
    for g_labels, g_teacher in ((1.0, -3.0), (0.5, 2.0), (-1.0, 0.25)):
        optimizer.zero_grad()
        of_labels, of_teacher = g_labels * p.sum(), g_teacher * p.sum()
        optimizer.tell_apart(of_labels, of_teacher)
        (of_labels + of_teacher).backward()
        optimizer.step()
        v_labels = 0.825 * v_labels + g_labels + 0.5 * value
        v_teacher = 0.975 * v_teacher + g_teacher
        value -= 0.1 * (v_labels + v_teacher)
        torch.testing.assert_close(p.item(), value, rtol=1e-12, atol=0)


def test_the_kept_sum_and_part_are_those_of_two_buffers_with_their_own_momenta():
    generator = torch.Generator().manual_seed(0)
    v_labels, v_teacher, g_labels, g_teacher = torch.randn((4, 5), generator=generator, dtype=torch.float64)
    total, of_teacher = two_momenta(v_labels + v_teacher, v_teacher, g_labels + g_teacher, g_teacher, 0.9, 0.05)
    torch.testing.assert_close(total - of_teacher, 0.85 * v_labels + g_labels)
    torch.testing.assert_close(of_teacher, 0.95 * v_teacher + g_teacher)


def test_dot_without_delta_is_sgd_to_the_bit(small_context, tmp_path):
    made = [
        train(network(), dataclasses.replace(small_context, work=tmp_path / settings.kind), training(settings))
        for settings in (Sgd(momentum=0.9), Dot(momentum=0.9, delta=0.0))
    ]
    assert bytes_equal(*made)


def test_dot_with_delta_is_another_training(small_context, tmp_path):
    made = [
        train(network(), dataclasses.replace(small_context, work=tmp_path / str(delta)), training(Dot(delta=delta)))
        for delta in (0.0, 0.05)
    ]
    assert not bytes_equal(*made)


def test_a_parameter_that_one_loss_alone_reaches_has_the_ordinary_momentum():
    mine, other, both = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    optimizer = DistillationOriented([{"params": [mine, other, both]}], 0.1, 0.9, 0.075)
    for _ in range(3):
        optimizer.zero_grad()
        of_labels, of_teacher = (mine + both).sum(), (2 * other + 2 * both).sum()
        assert reached(of_labels) == {mine, both}
        optimizer.tell_apart(of_labels, of_teacher)
        (of_labels + of_teacher).backward()
        optimizer.step()
    moved = sum(sum(0.9**j for j in range(i + 1)) for i in range(3))
    torch.testing.assert_close(mine, torch.full_like(mine, 1 - 0.1 * moved))
    torch.testing.assert_close(other, torch.full_like(other, 1 - 0.2 * moved))
    labels, teacher = (sum(sum(m**j for j in range(i + 1)) for i in range(3)) for m in (0.825, 0.975))
    torch.testing.assert_close(both, torch.full_like(both, 1 - 0.1 * (labels + 2 * teacher)))


def test_the_bound_on_the_gradients_norm_holds_the_teachers_part_too():
    weights = [torch.tensor([[3.0, -1.0]]), torch.tensor([[3.0, -1.0]])]
    for weight, size in zip(weights, (1.0, 1e3), strict=True):  # far above the bound, the size no longer matters
        layer = nn.Linear(2, 1, bias=False)
        layer.weight = nn.Parameter(weight)
        stepper = Stepper(layer, training(Dot(delta=0.09), clip_norm=1e-3, weight_decay=0.0, warmup=0.0))
        for sign in (1, -1, 1):
            out = layer(torch.tensor([[1.0, 2.0]]))
            step(stepper, size * out.sum(), sign * size * 2 * out.sum(), 0.0)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_the_teachers_loss_falls_faster_where_its_momentum_is_larger():
    # Labels and teacher pull one weight vector along directions of their own, as in the paper's trade-off.
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn((64, 6), generator=generator), torch.randn((64, 3), generator=generator)
    labels = wanted.argmax(1)
    losses = {}
    for delta in (0.0, 0.08):
        layer = nn.Linear(6, 3)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        stepper = Stepper(layer, training(Dot(delta=delta), learning_rate=1e-3, warmup=0.0, weight_decay=0.0))
        for _ in range(40):
            logits = layer(inputs)
            kd = functional.mse_loss(logits, wanted)
            step(stepper, functional.cross_entropy(logits, labels), kd, 0.0)
        losses[delta] = kd.item()
    assert losses[0.08] < losses[0.0]


@pytest.mark.parametrize("settings", [AdamW(), Sgd(), Sgd(momentum=0.0), Dot()], ids=lambda s: f"{s}")
def test_a_training_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, settings):
    whole, again = whole_and_gone_on(network, small_context, training(settings), tmp_path, 4)
    assert same_bytes(whole, again)


@pytest.mark.parametrize(("momentum", "delta"), [(0.9, 0.1), (0.05, 0.075)])
def test_momenta_outside_their_range_are_refused(momentum, delta):
    with pytest.raises(ValidationError, match="lower delta"):
        Dot(momentum=momentum, delta=delta)
