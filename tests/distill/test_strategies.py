"""What strategies change in the loop: the samples of a view, and what the student learns from."""

import dataclasses

import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from networks import normal
from torch import nn
from torch.nn import functional

from kdc.core.data import Split
from kdc.core.errors import DataError, ModelError
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.mixing import beta
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.strategy_settings.views import Mixup
from kdc.distill.teacher import predict
from kdc.distill.teacher_answers import TeacherAnswers
from kdc.distill.views import view


def network(seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
    )
    return normal(model, seed)


def drawn(context, n: int = 8) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    return Drawn(number=0, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=None)


def test_shares_of_mixup_have_the_moments_of_their_beta_distribution():
    for alpha in (0.2, 1.0, 4.0):
        draws = beta(alpha, 20_000, torch.Generator().manual_seed(0)).double()
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(draws.mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
        assert abs(draws.var() - variance) < 0.05 * variance


def test_a_mixed_view_is_the_same_mixture_of_samples_and_labels_each_time(small_context):
    data = small_context.data
    made, again = (view(data, 0, 0, (Mixup(alpha=1.0),)) for _ in range(2))
    assert torch.equal(made.samples.inputs[0], again.samples.inputs[0])
    assert made.key == again.key
    share = made.share.reshape(-1, 1, 1, 1)
    for i in range(len(data.train)):
        rest = (made.samples.inputs[0][i] - share[i] * data.train.inputs[0][i]) / (1 - share[i])
        partner = (data.train.inputs[0] - rest).flatten(1).abs().max(1).values.argmin()
        torch.testing.assert_close(data.train.inputs[0][partner], rest, rtol=1e-2, atol=1e-2)
        assert data.train.labels[partner] == made.others[i]


def test_views_of_other_transforms_have_other_names_so_that_no_stored_answer_is_taken_for_another(small_context):
    data = small_context.data
    transforms = [(), (Mixup(alpha=1.0),), (Mixup(alpha=0.5),), (Mixup(), Mixup())]
    keys = [view(data, 0, number, t).key for number in (0, 1) for t in transforms]
    assert len(set(keys)) == len(keys) - 1  # without augmentation and transforms every number is one view
    mixed = view(data, 0, 1, (Mixup(),))
    for _ in range(2):
        with TeacherAnswers(small_context) as answers:
            found = answers.of(mixed)[torch.arange(len(mixed.samples))]
        assert torch.equal(found, predict(small_context.teacher, mixed.samples))


def test_mixup_refuses_tokens(small_context):
    tokens = Split((torch.ones((4, 3), dtype=torch.int64),), torch.zeros(4, dtype=torch.int64))
    data = dataclasses.replace(small_context.data, train=tokens)
    with pytest.raises(DataError, match="int64"):
        view(data, 0, 0, (Mixup(),))


def test_labels_of_a_mixed_sample_count_by_their_share_and_a_missing_one_not_at_all(small_context):
    (policy,) = policies([HardLabels(weight=2.0)], network(), small_context)
    logits = torch.randn((3, 3), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        index=torch.arange(3), labels=torch.tensor([0, 1, -1]), student=logits, teacher=torch.empty(0),
        others=torch.tensor([2, 1, -1]), share=torch.tensor([0.25, 0.5, 0.5]),
    )  # fmt: skip
    costs = -functional.log_softmax(logits, 1)
    expected = torch.stack([0.25 * costs[0, 0] + 0.75 * costs[0, 2], costs[1, 1], torch.tensor(0.0)])
    torch.testing.assert_close(policy.loss(batch), 2 * expected)


def test_the_target_of_ps_kd_is_labels_and_the_answers_of_the_epoch_before_in_a_share_that_grows(small_context):
    student = network().eval()
    (policy,) = policies([PastSelf(share=0.5)], student, small_context)
    policy.begin(0)
    step = policy.change(drawn(small_context))
    logits = student(*step.inputs)

    def loss(progress: float) -> torch.Tensor:
        return policy.loss(
            Batch(index=step.index, labels=step.labels, student=logits, teacher=torch.empty(0), progress=progress)
        )

    torch.testing.assert_close(loss(0.9), functional.cross_entropy(logits, step.labels, reduction="none"))
    policy.begin(1)
    past = functional.softmax(student(*step.inputs), 1).detach()
    with torch.no_grad():
        student[5].weight.mul_(-3)  # what it is now is not what it was
    policy.change(step)
    for progress in (0.4, 0.8):
        share = 0.5 * progress
        target = (1 - share) * functional.one_hot(step.labels, 3) + share * past
        torch.testing.assert_close(loss(progress), -(target * functional.log_softmax(logits, 1)).sum(1))


SHORT = Training(
    epochs=3, batch=32, views=2, checkpoint_seconds=1e-6, transforms=(Mixup(),),
    objectives=(SoftTargets(),), strategies=(PastSelf(),),
)  # fmt: skip


@pytest.mark.parametrize("killed_after", [2, 5, 7])
def test_a_training_with_strategies_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, killed_after):
    whole, again = whole_and_gone_on(network, small_context, SHORT, tmp_path, killed_after)
    assert same_bytes(whole, again)


def test_a_loss_that_breaks_is_told_with_its_term_its_step_and_its_sample(small_context):
    student = network()
    next(student.parameters()).data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"the loss of kd is nan at step 0 of 3, for 32 of 32 samples"):
        train(student, small_context, Training(epochs=1, batch=32, objectives=(SoftTargets(),)))


def test_a_teacher_that_nobody_reads_is_not_asked(small_context):
    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    small_context.teacher.register_forward_pre_hook(refuse)
    train(network(), small_context, Training(epochs=1, batch=32, objectives=(HardLabels(),)))
