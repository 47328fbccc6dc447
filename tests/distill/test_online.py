"""ORC: peers learn beside the student, the best of the group teach, and the roles change with the ranks."""

import dataclasses

import pytest
import torch
from killing import whole_and_gone_on
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch
from kdc.distill.settings import HardLabels, Training
from kdc.distill.strategies.online import Lesson, peer_of
from kdc.distill.strategy_settings.online import RoleChange


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
    )
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def group(context, **settings: object):
    (policy,) = policies([RoleChange(**settings)], network(), context)
    return policy


def answers(networks: int, n: int = 6) -> torch.Tensor:
    return torch.randn((networks, n, 3), generator=seeded(1), requires_grad=True)


def test_peers_have_weights_of_their_own_of_the_students_mean_and_spread():
    student = nn.Linear(60, 80)
    with torch.no_grad():
        student.weight.normal_(0.5, 0.2, generator=seeded(0))
    for fresh in (0.3, 1.0):
        peer = peer_of(student, fresh, seeded(1))
        assert torch.equal(peer.bias, student.bias)
        torch.testing.assert_close(peer.weight.mean(), student.weight.mean(), rtol=0.05, atol=0)
        torch.testing.assert_close(peer.weight.std(), student.weight.std(), rtol=0.05, atol=0)
        alike = torch.corrcoef(torch.stack([peer.weight.flatten(), student.weight.flatten()]))[0, 1]
        assert abs(alike - (1 - fresh**2) ** 0.5) < 0.05
    torch.testing.assert_close(peer_of(student, 0.0, seeded(1)).weight, student.weight)


def test_before_each_round_the_networks_of_the_smallest_losses_become_the_teachers(small_context):
    policy = group(small_context, peers=3, teachers=2, private_steps=1, joint_steps=2)
    assert policy.lesson(0).teachers.tolist() == [False, False, True, True]  # the student begins as one
    policy.losses.copy_(torch.tensor([0.2, 0.9, 0.1, 0.8]))
    for number in (1, 2):  # within the round roles stay
        assert policy.lesson(number).teachers.tolist() == [False, False, True, True]
    assert policy.lesson(3).teachers.tolist() == [True, False, True, False]  # one rises, one falls
    assert [policy.lesson(number).private for number in range(3, 9)] == [True, False, False, True, False, False]
    policy.losses.copy_(torch.tensor([0.9, 0.1, 0.2, 0.8]))
    assert policy.lesson(6).teachers.tolist() == [False, True, True, False]


def test_in_a_private_step_teachers_learn_the_students_errors_and_nobody_else_anything(small_context):
    policy = group(small_context, peers=3, teachers=2, feedback=0.5)
    target = functional.one_hot(torch.arange(6) % 3, 3).float()
    logits = 4 * target.repeat(4, 1, 1)
    logits[0, 2] = 4 * target[0]  # network 0 is wrong about sample 2
    logits[1, 2], logits[1, 4] = 4 * target[0], 4 * target[2]  # network 1 about 2 and 4
    right = torch.full((4, 6), 2.0)
    known = torch.tensor([True] * 6)
    lesson = Lesson(torch.tensor([False, False, True, True]), private=True)
    found = policy.taught(logits, target, known, right, lesson)
    expected = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.5, 0.0]) * 0.5 * 2
    torch.testing.assert_close(found, torch.stack([torch.zeros(6), torch.zeros(6), expected, expected]))


def test_in_a_joint_step_students_follow_the_teachers_mean_and_teachers_follow_nobody(small_context):
    policy = group(small_context, peers=3, teachers=2, temperature=2.0)
    given = answers(4)
    lesson = Lesson(torch.tensor([True, False, False, True]), private=False)
    found = policy.taught(given, torch.zeros((6, 3)), torch.ones(6, dtype=torch.bool), torch.zeros((4, 6)), lesson)
    together = torch.softmax(((given[0] + given[3]) / 2 / 2).detach().double(), 1)
    for network_number in (1, 2):
        own = torch.log_softmax(given[network_number].double() / 2, 1)
        expected = 4 * (together * (together.log() - own)).sum(1)
        torch.testing.assert_close(found[network_number].double(), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[[0, 3]], torch.zeros((2, 6)))
    (slope,) = torch.autograd.grad(found.sum(), given)
    assert torch.equal(slope[[0, 3]], torch.zeros((2, 6, 3)))
    assert (slope[[1, 2]].abs().sum((1, 2)) > 0).all()


def test_the_running_losses_are_means_first_and_then_fade(small_context):
    policy = group(small_context, peers=1, teachers=1, memory=0.75)
    known = torch.tensor([True, True, False])
    expected = None
    for number, value in enumerate((4.0, 2.0, 3.0, 1.0, 5.0, 5.0)):
        policy._remember(torch.tensor([[value, 2 * value, 0.0], [1.0, 1.0, 0.0]]), known, number)
        fade = min(0.75, number / (number + 1))
        expected = 1.5 * value if expected is None else fade * expected + (1 - fade) * 1.5 * value
        torch.testing.assert_close(policy.losses, torch.tensor([expected, 1.0]))


def test_the_loss_is_the_peers_labels_and_the_lesson_with_none_from_samples_without_labels(small_context):
    policy = group(small_context, peers=2, teachers=1, private_steps=1, joint_steps=1)
    student = network().train()
    samples = small_context.data.train[torch.arange(9)]
    labels = samples.labels.clone()
    labels[4] = -1
    batch = Batch(
        number=0, index=torch.arange(9), inputs=samples.inputs, labels=labels, student=student(*samples.inputs),
        teacher=torch.empty(0),
    )  # fmt: skip
    found = policy.loss(batch)
    assert found.shape == (9,)
    assert found[4] == 0  # step 0 is private: nobody follows the teachers
    found.sum().backward()
    assert all(p.grad is not None for p in policy.peers.parameters())
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())  # no teacher, and the step is private
    joint = policy.loss(dataclasses.replace(batch, number=1, student=student(*samples.inputs)))
    assert joint[4] > 0
    joint.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_a_student_among_better_peers_comes_to_agree_with_them(small_context, tmp_path):
    def trained(weight: float) -> tuple[nn.Module, nn.Module]:
        context = dataclasses.replace(small_context, work=tmp_path / str(weight))
        student = network()
        (policy,) = policies([RoleChange(peers=2, teachers=2, weight=weight, private_steps=0)], student, context)
        objectives = (HardLabels(weight=0.05),)
        train(
            student, context, Training(epochs=15, batch=32, learning_rate=1e-2, objectives=objectives), extra=[policy]
        )
        return student, policy

    gaps = []
    for weight in (0.0, 3.0):
        student, policy = trained(weight)
        inputs = small_context.data.train.inputs
        with torch.no_grad():
            taught = torch.stack([peer.eval()(*inputs) for peer in policy.peers]).mean(0).softmax(1)
            gaps.append(functional.kl_div(student(*inputs).log_softmax(1), taught, reduction="batchmean").item())
    assert gaps[1] < gaps[0]


SHORT = Training(
    epochs=2, batch=32, checkpoint_seconds=1e-6, objectives=(HardLabels(weight=1.0),), strategies=(RoleChange(),)
)


@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_training_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, killed_after):
    whole, again = whole_and_gone_on(network, small_context, SHORT, tmp_path, killed_after)
    assert [*again.state_dict()] == [*network().state_dict()]  # nothing of the group is in it
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_group_of_teachers_alone_is_refused():
    with pytest.raises(ValidationError, match="leave no student"):
        RoleChange(peers=2, teachers=3)
