"""Samples without labels in every batch."""

import dataclasses

import numpy as np
import pytest
import torch
from answering import started
from killing import same_bytes, whole_and_gone_on
from networks import normal
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.logit_settings import Decoupled
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn
from kdc.distill.presets import ssld, unlabelled_only
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.unlabelled import surest
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.strategy_settings.mixing import StudentMixup
from kdc.distill.strategy_settings.unlabelled import Unlabelled
from kdc.distill.strategy_settings.views import Mixup
from kdc.distill.teacher import predict

UNLABELLED = 50


def network() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return normal(model, 6)


@pytest.fixture
def context(small_context):
    images = torch.randn((UNLABELLED, 1, 6, 6), generator=torch.Generator().manual_seed(9))
    unlabeled = Split((images,), torch.zeros(UNLABELLED, dtype=torch.int64))  # labels that nobody may look at
    return dataclasses.replace(small_context, data=dataclasses.replace(small_context.data, unlabeled=unlabeled))


def drawn(context, number: int = 0, n: int = 20, teacher: bool = True) -> Drawn:
    index = torch.arange(n).flip(0) + 30
    samples = context.data.train[index]
    return Drawn(
        number=number, index=index, inputs=samples.inputs, labels=samples.labels,
        teacher=predict(context.teacher, samples) if teacher else None,
    )  # fmt: skip


def test_a_batch_is_of_labelled_samples_and_then_of_unlabelled_ones_in_the_share_that_was_asked(context):
    (policy,) = started(policies([Unlabelled(share=0.3)], network(), context), context)
    plain = drawn(context)
    made = policy.change(plain)
    assert len(made.index) == 20
    assert torch.equal(made.index[:14], plain.index[:14])
    assert torch.equal(made.labels, torch.cat([plain.labels[:14], torch.full((6,), -1)]))
    new = made.index[14:] - len(context.data.train)
    expected = torch.cat([plain.inputs[0][:14], context.data.unlabeled.inputs[0][new]])
    assert torch.equal(made.inputs[0], expected)
    torch.testing.assert_close(made.teacher, context.teacher(expected))
    assert policy.change(dataclasses.replace(plain, teacher=None)).teacher is None


def test_each_unlabelled_sample_is_used_once_before_any_is_used_again_and_a_step_knows_its_own(context):
    (policy,) = started(policies([Unlabelled(share=0.6)], network(), context), context)
    steps = [policy.change(drawn(context, number)).index[8:] - len(context.data.train) for number in range(12)]
    counts = np.bincount(torch.cat(steps).numpy(), minlength=UNLABELLED)  # 144 of 50
    assert set(counts.tolist()) == {2, 3}
    assert not torch.equal(torch.cat(steps)[:50], torch.cat(steps)[50:100])
    (other,) = started(policies([Unlabelled(share=0.6)], network(), context), context)
    assert torch.equal(other.change(drawn(context, 7)).index[8:] - len(context.data.train), steps[7])


def test_labels_alone_have_no_gradient_from_unlabelled_samples_and_the_teacher_has(context):
    student = network().eval()
    strategy, labels, soft, decoupled = policies(
        [Unlabelled(share=0.5), HardLabels(weight=1.0), SoftTargets(), Decoupled()], student, context
    )
    started([strategy], context)
    made = strategy.change(drawn(context))
    for policy, learns in ((labels, False), (soft, True), (decoupled, True)):
        outputs = student(*made.inputs).detach().requires_grad_()
        batch = Batch(index=made.index, labels=made.labels, student=outputs, teacher=made.teacher)
        (gradient,) = torch.autograd.grad(policy.loss(batch).sum(), outputs)
        assert (gradient[:10] != 0).any(1).all()
        assert bool((gradient[10:] != 0).any()) is learns


def test_views_of_unlabelled_samples_go_through_the_same_transforms_with_draws_of_their_own(context):
    (policy,) = started(policies([Unlabelled(share=0.5)], network(), context), context)
    started([policy], context, Training(transforms=(Mixup(),), strategies=(Unlabelled(),)))
    plain = dataclasses.replace(
        drawn(context), others=torch.zeros(20, dtype=torch.int64), share=torch.full((20,), 0.5), view=1
    )
    made = policy.change(plain)
    own = context.data.unlabeled.inputs[0]
    for i in range(10, 20):
        share = made.share[i]
        rest = (made.inputs[0][i] - share * own[made.index[i] - 96]) / (1 - share)
        assert (own - rest).flatten(1).abs().amax(1).min() < 1e-2
    assert (made.others[10:] == -1).all()
    torch.testing.assert_close(made.teacher[10:], context.teacher(made.inputs[0][10:]))
    assert not torch.equal(made.inputs[0][10:], policy.change(dataclasses.replace(plain, view=2)).inputs[0][10:])
    again = policy.change(plain)  # from the stored answers
    assert torch.equal(again.inputs[0], made.inputs[0])
    assert torch.equal(again.teacher, made.teacher)


def test_the_samples_of_which_the_teacher_is_surest_are_taken_of_each_class_that_it_sees():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn((60, 4), generator=generator) * 2
    outputs[:, 3] -= 3  # few are of this class
    outputs[7] = outputs[3]
    found = surest(outputs, 6)
    probabilities = np.exp(outputs.double().numpy())
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = []
    for one in range(4):
        of = [i for i in range(60) if probabilities[i].argmax() == one]
        expected += sorted(of, key=lambda i: (-probabilities[i].max(), i))[:6]
    assert found.tolist() == sorted(expected)
    assert len(found) < 24


def test_only_the_surest_samples_are_drawn_where_the_settings_say_so(context):
    (policy,) = started(policies([Unlabelled(share=1.0, per_class=4)], network(), context), context)
    kept = surest(predict(context.teacher, context.data.unlabeled), 4)
    images = context.data.unlabeled.inputs[0]
    for number in range(3):
        made = policy.change(drawn(context, number))
        assert (made.labels == -1).all()
        for image in made.inputs[0]:
            assert int((images - image).flatten(1).abs().amax(1).argmin()) in kept.tolist()
        torch.testing.assert_close(made.teacher, context.teacher(*made.inputs))


def test_data_without_unlabelled_samples_are_refused(small_context):
    with pytest.raises(DataError, match="no unlabeled split"):
        policies([Unlabelled()], network(), small_context)


@pytest.mark.parametrize("killed_after", [2, 5])
def test_a_training_with_unlabelled_samples_that_was_killed_ends_with_the_same_bytes(context, tmp_path, killed_after):
    training = Training(
        epochs=3, batch=32, views=2, checkpoint_seconds=1e-6,
        strategies=(PastSelf(), StudentMixup(), Unlabelled(share=0.4)),
    )  # fmt: skip
    whole, again = whole_and_gone_on(network, context, training, tmp_path, killed_after)
    assert same_bytes(whole, again)


@pytest.fixture
def scarce(small_context):
    """Five in a hundred samples have a label; the teacher, a plane for each class, is right about all of them."""
    generator = torch.Generator().manual_seed(4)

    def split(n: int) -> Split:
        images = torch.randn((n, 1, 6, 6), generator=generator)
        return Split((images,), small_context.teacher(images).argmax(1))

    data = dataclasses.replace(
        small_context.data, train=split(25), unlabeled=split(475), validation=split(8), test=split(400)
    )
    return dataclasses.replace(small_context, data=data)


def accuracy(student: nn.Module, context) -> float:
    return float((predict(student, context.data.test).argmax(1) == context.data.test.labels).double().mean())


def test_few_labels_and_many_unlabelled_samples_beat_the_labels_alone_on_held_out_samples(scarce):
    def trained(name: str, training: Training) -> float:
        return accuracy(train(network(), dataclasses.replace(scarce, work=scarce.work / name), training), scarce)

    plain = {"epochs": 150, "batch": 25, "learning_rate": 1e-2}
    alone = trained("alone", Training(**plain, objectives=(HardLabels(weight=1.0),)))
    taught = trained("taught", Training(**plain))
    both = trained("both", Training(**plain, strategies=(Unlabelled(share=0.5),)))
    assert both > alone + 0.1
    assert both > taught + 0.05


@pytest.mark.parametrize("preset", [ssld, unlabelled_only])
def test_presets_without_labels_look_at_none(context, preset):
    plain = context.data.train
    other = dataclasses.replace(context.data, train=Split(plain.inputs, (plain.labels + 1) % 3))
    made = [
        train(
            network(), dataclasses.replace(context, data=data, work=context.work / str(i)), preset(epochs=1, batch=32)
        )
        for i, data in enumerate((context.data, other))
    ]
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_third_step_of_simclr_draws_unlabelled_samples_only(context):
    student, seen = network(), []
    student.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()) if m.training else None)
    train(student, context, unlabelled_only(epochs=1, batch=32))
    images = context.data.unlabeled.inputs[0].flatten(1)
    assert len(seen) == 3
    for image in torch.cat(seen).flatten(1):
        assert (images == image).all(1).any()
