"""A discriminator on the outputs, and a student that learns to be taken for its teacher."""

import dataclasses

import pytest
import torch
from blobs import Good, Noisy, same_bytes_after_a_kill, student, with_blobs
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch
from kdc.distill.settings import SoftTargets, Training
from kdc.distill.several import Several
from kdc.distill.strategies.discriminator import reversed_gradient
from kdc.distill.strategy_settings.discriminator import Discriminator
from kdc.distill.strategy_settings.several import Combined


@pytest.fixture
def context(small_context):
    return with_blobs(small_context, Good())


def batch_of(outputs: torch.Tensor, teacher: torch.Tensor) -> Batch:
    n = len(outputs)
    return Batch(index=torch.arange(n), labels=torch.zeros(n, dtype=torch.int64), student=outputs, teacher=teacher)


def logits(seed: int, n: int = 64, scale: float = 1.0) -> torch.Tensor:
    return torch.randn((n, 3), generator=torch.Generator().manual_seed(seed)) * scale


def test_the_loss_is_the_binary_cross_entropy_of_who_is_who_and_the_students_gradient_is_turned_round(context):
    (policy,) = policies([Discriminator(weight=0.5)], student(), context)
    outputs, teacher = logits(0).requires_grad_(), logits(1, scale=3.0)
    values = policy.loss(batch_of(outputs, teacher))
    plain = logits(0).requires_grad_()
    judged = [policy.judge(torch.log_softmax(x, 1)) for x in (plain, teacher)]
    kinds = torch.zeros(64), torch.ones(64)
    costs = [
        functional.binary_cross_entropy_with_logits(j, kind, reduction="none")
        for j, kind in zip(judged, kinds, strict=True)
    ]
    expected = 0.5 * (costs[0] + costs[1]) / 2
    torch.testing.assert_close(values, expected)
    parameters = list(policy.judge.parameters())
    of_student, *of_judge = torch.autograd.grad(values.mean(), [outputs, *parameters])
    plain_of_student, *plain_of_judge = torch.autograd.grad(expected.mean(), [plain, *parameters])
    torch.testing.assert_close(of_student, -plain_of_student)
    assert of_student.abs().max() > 0
    for a, b in zip(of_judge, plain_of_judge, strict=True):
        torch.testing.assert_close(a, b)


def test_a_reversed_gradient_changes_no_value():
    values = logits(0)
    assert torch.equal(reversed_gradient(values), values)


def test_a_shift_of_logits_tells_nothing_and_extreme_logits_stay_finite(context):
    (policy,) = policies([Discriminator()], student(), context)
    outputs, teacher = logits(0), logits(1)
    plain = policy.loss(batch_of(outputs, teacher))
    torch.testing.assert_close(policy.loss(batch_of(outputs + 50, teacher - 20)), plain, rtol=1e-4, atol=1e-4)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        extreme = torch.tensor([[6e4, -6e4, 0.0]], dtype=dtype)
        assert torch.isfinite(policy.loss(batch_of(extreme, -extreme))).all()


def test_the_discriminator_learns_to_tell_a_still_student_and_the_student_then_moves_to_the_teacher(context):
    """Sure teacher, unsure student: the judge must see it; then the student, by the judge's word alone, gets surer."""
    (policy,) = policies([Discriminator()], student(), context)
    teacher = 6 * functional.one_hot(torch.arange(64) % 3, 3).float()
    outputs = logits(0).requires_grad_()
    judge = torch.optim.Adam(policy.judge.parameters(), 1e-2)
    first = policy.loss(batch_of(outputs, teacher)).mean().item()
    for _ in range(150):
        judge.zero_grad()
        loss = policy.loss(batch_of(outputs.detach(), teacher)).mean()
        loss.backward()
        judge.step()
    assert loss.item() < 0.3 * first

    def sureness() -> float:
        return torch.softmax(outputs.detach(), 1).amax(1).mean().item()

    unsure = sureness()
    mover = torch.optim.Adam([outputs], 5e-2)
    for _ in range(150):
        mover.zero_grad()
        policy.loss(batch_of(outputs, teacher)).mean().backward()
        mover.step()
    assert sureness() > unsure + 0.1
    assert policy.loss(batch_of(outputs, teacher)).mean() > 3 * loss.item()  # it is told apart no more


def test_meal_v2_is_averaged_probabilities_and_a_discriminator_without_labels(context):
    context = dataclasses.replace(context, teacher=Several([Good(2.0), Good(1.0)]))
    training = Training(
        epochs=15, batch=32, learning_rate=1e-2, weight_decay=0.0,
        objectives=(SoftTargets(temperature=1.0, weight=1.0),), strategies=(Combined(), Discriminator()),
    )  # fmt: skip
    data = context.data
    flipped = dataclasses.replace(data.train, labels=(data.train.labels + 1) % 3)
    wrong = dataclasses.replace(context, data=dataclasses.replace(data, train=flipped), work=context.work / "wrong")
    trained = train(student(), context, training)
    with torch.no_grad():
        right = (trained(*data.test.inputs).argmax(1) == data.test.labels).float().mean()
    assert right > 0.9
    assert [*trained.state_dict()] == [*student().state_dict()]
    blind = train(student(), wrong, training)
    for a, b in zip(trained.state_dict().values(), blind.state_dict().values(), strict=True):
        assert torch.equal(a, b)  # no label was read


def test_outputs_that_are_no_classes_are_refused(context):
    (policy,) = policies([Discriminator()], student(), context)
    with pytest.raises(ModelError, match="needs a classifier"):
        policy.loss(batch_of(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)))


def test_a_training_with_a_discriminator_that_was_killed_ends_with_the_same_bytes(context, tmp_path):
    context = dataclasses.replace(context, teacher=Several([Good(), Noisy()]))
    training = Training(
        epochs=3, batch=64, checkpoint_seconds=1e-6, objectives=(SoftTargets(),),
        strategies=(Combined(), Discriminator()),
    )  # fmt: skip
    same_bytes_after_a_kill(student, context, training, 4, tmp_path / "whole")
