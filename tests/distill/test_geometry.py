"""TGeo-KD: the network that weighs teacher and labels learns through the student's trial step, on held-out samples."""

import dataclasses

import numpy as np
import pytest
import torch
from killing import whole_and_gone_on
from torch import nn
from torch.nn import functional

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.geometry import geometry
from kdc.distill.strategy_settings.weights import Trilateral


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(dropout: float = 0.1, seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    )
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Misled(nn.Module):
    """Right about every sample but those whose first pixel is marked, which it is sure are of the next class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = x[:, 0, 1, :3].argmax(1)
        wrong = x[:, 0, 0, 0] > 0
        return 5 * functional.one_hot((right + wrong) % 3, 3).float()


def separable(n: int, seed: int, marked: float) -> Split:
    inputs = 0.3 * torch.randn((n, 1, 6, 6), generator=seeded(seed))
    labels = torch.arange(n) % 3
    inputs[torch.arange(n), 0, 1, labels] += 3
    inputs[:, 0, 0, 0] = torch.where(torch.rand(n, generator=seeded(seed + 1)) < marked, 1.0, -1.0)
    return Split((inputs,), labels)


def misled(context, work):
    data = dataclasses.replace(context.data, train=separable(240, 10, 0.4), calibration=separable(90, 20, 0.4))
    return dataclasses.replace(context, data=data, teacher=Misled().eval(), work=work)


def batch_of(context, student: nn.Module, n: int, number: int = 0) -> Batch:
    samples = context.data.train[torch.arange(n)]
    return Batch(
        number=number, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels,
        student=student(*samples.inputs), teacher=context.teacher(*samples.inputs),
    )  # fmt: skip


def test_edges_are_the_differences_of_four_distributions():
    given = [torch.softmax(torch.randn((5, 3), generator=seeded(i), dtype=torch.float64), 1) for i in range(4)]
    found = geometry(*given).numpy()
    s, t, g, m = (tensor.numpy() for tensor in given)
    for i in range(5):
        expected = [*(s - t)[i], *(t - g)[i], *(g - s)[i], *(s - m)[i], *(t - m)[i], *(g - m)[i]]
        np.testing.assert_allclose(found[i], expected, atol=1e-15)


def test_shares_are_within_0_and_1_begin_at_a_half_and_weigh_the_losses_against_each_other(small_context):
    student = network()
    parts = (Trilateral(), HardLabels(weight=1.0), SoftTargets())
    weights, *others = policies(parts, student, small_context)
    batch = batch_of(small_context, student, 12, number=1)  # no lesson at this step
    losses = {policy: policy.loss(batch) for policy in others}
    found = weights.weigh(batch, losses)
    for policy, loss in losses.items():
        torch.testing.assert_close(found[policy], loss / 2)
    with torch.no_grad():
        for parameter in weights.share.parameters():
            parameter.normal_(generator=seeded(1)).mul_(0.3)
    share = weights.share(weights.seen(batch)[0])
    assert ((share >= 0) & (share <= 1)).all()
    assert share.std() > 0.05
    found = weights.weigh(batch, losses)
    torch.testing.assert_close(found[others[1]], losses[others[1]] * share)
    torch.testing.assert_close(found[others[0]], losses[others[0]] * (1 - share))


def test_an_unlabelled_sample_takes_all_of_the_teacher(small_context):
    student = network()
    weights, *others = policies((Trilateral(), HardLabels(weight=1.0), SoftTargets()), student, small_context)
    batch = batch_of(small_context, student, 4)
    batch = dataclasses.replace(batch, labels=torch.tensor([0, -1, 2, -1]))
    losses = {policy: policy.loss(batch) for policy in others}
    found = weights.weigh(batch, losses)[others[1]] / losses[others[1]]
    assert torch.equal(found[[1, 3]], torch.ones(2))
    assert (found[[0, 2]] < 1).all()


def test_the_mean_of_a_class_is_over_all_its_samples_so_far(small_context):
    (weights,) = policies([Trilateral()], network(), small_context)
    target = functional.one_hot(torch.tensor([0, 1, 0, 2, 0, 1]), 3).float()
    teacher = torch.softmax(torch.randn((6, 3), generator=seeded(2)), 1)
    known = torch.tensor([True, True, True, True, False, True])
    weights.share.mean_of(target[:3], teacher[:3], known[:3])
    found = weights.share.mean_of(target[3:], teacher[3:], known[3:])
    torch.testing.assert_close(found[0], teacher[3])
    torch.testing.assert_close(found[1], (teacher[0] + teacher[2]) / 2)
    torch.testing.assert_close(found[2], (teacher[1] + teacher[5]) / 2)


def test_the_gradient_through_the_trial_step_is_that_of_finite_differences(small_context):
    student = network(dropout=0.0).double()
    weights, *others = policies((Trilateral(hidden=4, lookahead=0.5), HardLabels(weight=1.0), SoftTargets()), student, small_context)  # fmt: skip  # noqa: E501
    weights.share.double()
    data = small_context.data.train[torch.arange(6)]
    batch = Batch(
        index=torch.arange(6), inputs=data.inputs, labels=data.labels, student=student(data.inputs[0].double()),
        teacher=small_context.teacher(*data.inputs).double(),
    )  # fmt: skip
    of_labels, of_teacher = (policy.loss(batch) for policy in others)
    held = small_context.data.calibration[torch.arange(5)]
    held = Split((held.inputs[0].double(),), held.labels)
    edges = torch.randn((6, 18), generator=seeded(3), dtype=torch.float64)
    given = weights.share.weights()
    first = [torch.randn(p.shape, generator=seeded(4), dtype=torch.float64).requires_grad_() for p in given.values()]

    def outer(*values: torch.Tensor) -> torch.Tensor:
        made = dict(zip(given, values, strict=True))
        return weights.outer(made, edges, torch.ones(6, dtype=torch.bool), of_labels, of_teacher, held)

    assert torch.autograd.gradcheck(outer, first)
    assert max(slope.abs().max() for slope in torch.autograd.grad(outer(*first), first)) > 1e-3


def test_a_lesson_leaves_the_students_weights_statistics_and_graph_alone(small_context):
    student = network().train()
    weights, *others = policies((Trilateral(), HardLabels(weight=1.0), SoftTargets()), student, small_context)
    batch = batch_of(small_context, student, 12)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    losses = {policy: policy.loss(batch) for policy in others}
    network_before = [parameter.clone() for parameter in weights.share.parameters()]
    found = weights.weigh(batch, losses)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(network_before, weights.share.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in student.parameters())
    torch.stack(list(found.values())).sum().backward()  # the loop's own backward comes after
    assert all(parameter.grad is None for parameter in weights.share.parameters())


def test_the_share_of_the_teacher_falls_where_it_is_wrong_and_rises_where_the_labels_are(small_context, tmp_path):
    context = misled(small_context, tmp_path / "misled")
    samples = context.data.train
    wrong = samples.inputs[0][:, 0, 0, 0] > 0
    noisy = ~wrong & (torch.rand(len(samples), generator=seeded(7)) < 0.5)
    labels = torch.where(noisy, (samples.labels + 1) % 3, samples.labels)  # held-out labels are right
    data = dataclasses.replace(context.data, train=Split(samples.inputs, labels))
    context = dataclasses.replace(context, data=data)
    student = network(dropout=0.0)
    training = Training(epochs=12, batch=40, learning_rate=5e-3, objectives=(HardLabels(weight=1.0), SoftTargets(temperature=1.0)))  # fmt: skip  # noqa: E501
    (weights,) = policies([Trilateral(every=1, learning_rate=1e-2)], student, context)
    train(student, context, training, extra=[weights])
    share = weights.share(weights.seen(batch_of(context, student, len(samples)))[0])
    assert share[wrong].mean() < 0.3
    assert share[noisy].mean() > 0.6


SHORT = Training(
    epochs=2, batch=32, checkpoint_seconds=1e-6, objectives=(HardLabels(weight=1.0), SoftTargets()),
    strategies=(Trilateral(hidden=4),),
)  # fmt: skip


@pytest.mark.parametrize("killed_after", [2, 5])
def test_a_training_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, killed_after):
    whole, again = whole_and_gone_on(network, small_context, SHORT, tmp_path, killed_after)
    assert [*whole.state_dict()] == [*network().state_dict()]
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_held_out_samples_without_labels_are_refused(small_context):
    calibration = small_context.data.calibration
    unlabelled = Split(calibration.inputs, torch.full_like(calibration.labels, -1))
    data = dataclasses.replace(small_context.data, calibration=unlabelled)
    with pytest.raises(DataError, match="calibration"):
        policies([Trilateral()], network(), dataclasses.replace(small_context, data=data))
