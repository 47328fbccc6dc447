"""Attacks on the student, trainings on adversarial examples, and scores under attack."""

import dataclasses

import numpy as np
import pytest
import torch
from blobs import CENTRES, Good, same_bytes_after_a_kill, split, student, with_blobs
from pydantic import ValidationError
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError, ModelError
from kdc.distill.attack import Bounds, attacked, robust_scores
from kdc.distill.feature_settings import Hints
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.several import Several
from kdc.distill.strategies.adversarial_balance import balanced, mean_entropy
from kdc.distill.strategy_settings.adversarial import Adversarial, Attack, LowTemperature, TwoTeachers
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.strategy_settings.several import Combined

ATTACK = Attack(epsilon=0.1, step=0.03, steps=5)


@pytest.fixture
def context(small_context):
    return with_blobs(small_context, Good(), noise=0.4)


def drawn(context, n: int = 24, number: int = 3, stored: bool = True) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    teacher = context.teacher(*samples.inputs) if stored else None
    return Drawn(number=number, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=teacher)


def batch_of(step: Drawn, outputs: torch.Tensor) -> Batch:
    return Batch(
        number=step.number, index=step.index, inputs=step.inputs, labels=step.labels, student=outputs,
        teacher=step.teacher,
    )  # fmt: skip


def sharp() -> nn.Module:
    """A student whose answers are sure enough to be led away from."""
    model = student().eval()
    with torch.no_grad():
        model[3].weight.mul_(5)
    return model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_attack_raises_the_loss_and_stays_within_epsilon_and_the_inputs_range(context):
    model, data = sharp(), context.data.train
    bounds = Bounds.of(data, ATTACK)
    scale = bounds.high - bounds.low

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return context.task.loss(outputs, data.labels)

    (changed,) = attacked(model, data.inputs, loss, ATTACK, bounds, generator())
    with torch.no_grad():
        before, after = loss(model(*data.inputs)), loss(model(changed))
    assert (after > before).float().mean() > 0.95
    assert after.mean() > before.mean() + 0.2
    moved = (changed - data.inputs[0]).abs()
    assert moved.max() <= ATTACK.epsilon * scale * (1 + 1e-5)
    assert moved.max() > 0.99 * ATTACK.epsilon * scale
    assert changed.min() >= bounds.low
    assert changed.max() <= bounds.high
    random = Attack(epsilon=ATTACK.epsilon, step=1e-9, steps=1)
    (started,) = attacked(model, data.inputs, loss, random, bounds, generator())
    with torch.no_grad():
        assert after.mean() > loss(model(started)).mean() + 0.05  # more than noise of the same size does
    assert torch.equal(attacked(model, data.inputs, loss, ATTACK, bounds, generator())[0], changed)


def test_the_attack_on_a_linear_model_is_the_corner_of_the_box():
    """For a linear loss the worst point within epsilon is known: every coordinate goes all the way."""
    weight = torch.tensor([[1.0, -2.0, 0.5]])
    model = nn.Linear(3, 1, bias=False)
    model.weight.data.copy_(weight)
    x = torch.zeros(2, 3)
    bounds = Bounds(torch.tensor([-10.0]), torch.tensor([10.0]))
    attack = Attack(epsilon=0.05, step=0.02, steps=10)  # 1.0 in the inputs' units
    (changed,) = attacked(model, (x,), lambda outputs: outputs.squeeze(1), attack, bounds, generator())
    torch.testing.assert_close(changed, torch.sign(weight).expand(2, 3) * 1.0)
    (changed,) = attacked(
        model, (x,), lambda outputs: outputs.squeeze(1), attack, Bounds(torch.tensor([-19.9]), torch.tensor([0.1])),
        generator(),
    )  # fmt: skip
    torch.testing.assert_close(changed, torch.tensor([[0.1, -1.0, 0.1]]).expand(2, 3))  # up to the edge of the range


def test_values_out_of_the_range_are_not_moved_by_more_than_epsilon_either():
    bounds = Bounds(torch.tensor([0.0]), torch.tensor([1.0]))
    x = torch.tensor([[3.0, -2.0]])
    attack = Attack(epsilon=0.1, step=0.1, steps=3)
    (changed,) = attacked(nn.Identity(), (x,), lambda outputs: -outputs.square().sum(1), attack, bounds, generator())
    torch.testing.assert_close(changed, torch.tensor([[2.9, -1.9]]))


def test_the_range_is_seen_from_the_training_split_for_each_channel_and_settings_overrule_it():
    images = torch.rand((20, 2, 4, 4), generator=generator())
    images[:, 1] = images[:, 1] * 100 - 50
    data = Split((images,), torch.zeros(20, dtype=torch.int64))
    seen = Bounds.of(data, Attack())
    assert seen.low.shape == (1, 2, 1, 1)
    for channel in range(2):
        assert seen.low[0, channel, 0, 0] == images[:, channel].min()
        assert seen.high[0, channel, 0, 0] == images[:, channel].max()
    given = Bounds.of(data, Attack(low=-1.0, high=2.0))
    assert given.low.item() == -1
    assert given.high.item() == 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    (changed,) = attacked(model, data.inputs, lambda o: o[:, 0] - o[:, 1], Attack(epsilon=0.1), seen, generator())
    moved = (changed - images).abs().amax((0, 2, 3))
    assert moved[0] <= 0.1 * (1 + 1e-5)
    assert 5 < moved[1] <= 10 * (1 + 1e-5)


def test_inputs_that_cannot_be_attacked_and_ranges_that_are_none_are_refused():
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(DataError, match="int64"):
        Bounds.of(Split((torch.ones((4, 3), dtype=torch.int64),), labels), Attack())
    with pytest.raises(DataError, match="low < high"):
        Bounds.of(Split((torch.ones((4, 3)),), labels), Attack())
    with pytest.raises(ValidationError, match="not below"):
        Attack(low=1.0, high=0.0)
    with pytest.raises(ValidationError, match="both the clean and the robust"):
        TwoTeachers(clean=1, robust=1)


def test_an_attack_leaves_the_student_as_it_was(context):
    model = student().train()
    model[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for against in ("labels", "student", "teacher"):
        (policy,) = policies([Adversarial(attack=ATTACK, against=against)], model, context)
        policy.change(drawn(context))
    assert model[0].training
    assert not model[3].training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("against", ["labels", "student", "teacher"])
def test_each_attack_leads_the_student_away_from_what_it_is_against(context, against):
    model = sharp()
    (policy,) = policies([Adversarial(attack=ATTACK, against=against)], model, context)
    step = drawn(context, 96)
    changed = policy.change(step)
    own, teacher = model(*step.inputs).detach(), context.teacher(*step.inputs)

    def far(inputs: tuple[torch.Tensor, ...]) -> float:
        log_q = torch.log_softmax(model(*inputs), 1)
        if against == "labels":
            return -log_q[torch.arange(96), step.labels].mean().item()
        p = torch.softmax(own if against == "student" else teacher, 1)
        return -(p * log_q).sum(1).mean().item()

    assert far(changed.inputs) > far(step.inputs) + 0.01


def test_an_unlabelled_sample_is_attacked_away_from_the_students_own_class(context):
    model = student().eval()
    (policy,) = policies([Adversarial(attack=ATTACK)], model, context)
    step = drawn(context)
    own = model(*step.inputs).argmax(1)
    unlabelled = policy.change(dataclasses.replace(step, labels=torch.full((24,), -1)))
    labelled = policy.change(dataclasses.replace(step, labels=own))
    assert torch.equal(unlabelled.inputs[0], labelled.inputs[0])


def test_the_teacher_answers_for_the_clean_sample_or_for_the_changed_one(context):
    step = drawn(context)
    (of_clean,) = policies([Adversarial(attack=ATTACK)], student(), context)
    for stored in (True, False):
        changed = of_clean.change(drawn(context, stored=stored))
        torch.testing.assert_close(changed.teacher, context.teacher(*step.inputs))
    assert not of_clean.runs_teacher  # what is stored is enough
    (of_changed,) = policies([Adversarial(attack=ATTACK, teacher_sees="adversarial")], student(), context)
    assert of_changed.runs_teacher
    assert not of_changed.reads_teacher
    assert of_changed.change(step).teacher is None


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_clean_samples_count_by_their_share_for_every_loss(context, share):
    (policy,) = policies([Adversarial(attack=ATTACK, clean_share=share)], student(), context)
    changed = policy.change(step := drawn(context))
    assert torch.equal(changed.inputs[0][:24], step.inputs[0])
    assert not torch.equal(changed.inputs[0][24:], step.inputs[0])
    assert torch.equal(changed.labels, step.labels.repeat(2))
    assert torch.equal(changed.index, step.index.repeat(2))
    assert torch.equal(changed.teacher, step.teacher.repeat(2, 1))
    values = torch.arange(48, dtype=torch.float32)
    weighed = policy.weigh(batch_of(changed, torch.zeros(48, 3)), {policy: values})[policy]
    torch.testing.assert_close(weighed.mean(), share * values[:24].mean() + (1 - share) * values[24:].mean())


def robust(model: nn.Module, context, attack: Attack, restarts: int = 1) -> float:
    bounds = Bounds.of(context.data.train, attack)
    return robust_scores(model, context.data.test, context.task, attack, bounds, 0, restarts).mean()


FRAGILE = Training(epochs=10, batch=32, learning_rate=1e-2, objectives=(HardLabels(weight=1.0),))


def fragile_context(context):
    """Three large features tell the class; three small ones tell it more surely, but a small change turns them."""

    def with_bait(part: Split, seed: int) -> Split:
        g = torch.Generator().manual_seed(seed)
        (x,) = part.inputs
        bait = 0.35 * (CENTRES[part.labels][:, :3] - 0.67).sign() + 0.05 * torch.randn((len(x), 3), generator=g)
        return Split((torch.cat([x[:, :3], bait], 1),), part.labels)

    data = context.data
    parts = {
        name: with_bait(split(count, seed, 0.6), seed)
        for seed, (name, count) in enumerate(
            (("train", 192), ("calibration", 48), ("validation", 96), ("test", 192)), 11
        )
    }
    return dataclasses.replace(context, data=dataclasses.replace(data, **parts))


@pytest.mark.parametrize(
    "strategy",
    [
        Adversarial(attack=Attack(epsilon=0.08, step=0.03, steps=5), teacher_sees="adversarial"),
        LowTemperature(attack=Attack(epsilon=0.08, step=0.03, steps=5)),
    ],
    ids=["labels", "ltd"],
)
def test_training_on_adversarial_examples_raises_the_accuracy_under_attack(context, strategy):
    context = fragile_context(context)
    attack = Attack(epsilon=0.08, step=0.02, steps=10)
    objectives = (SoftTargets(temperature=1.0, weight=1.0),) if strategy.kind == "ltd" else (HardLabels(weight=1.0),)
    plain = FRAGILE.model_copy(update={"objectives": objectives})
    hardened = plain.model_copy(update={"strategies": (strategy,)})
    a = train(student(), dataclasses.replace(context, work=context.work / "plain"), plain)
    b = train(student(), dataclasses.replace(context, work=context.work / "hardened"), hardened)
    assert robust(b, context, attack) > robust(a, context, attack) + 0.1
    # More random starts find little more: the gradient that the attack follows is not masked.
    assert robust(b, context, attack, restarts=3) > robust(b, context, attack) - 0.06


def test_scores_under_attack_are_one_a_sample_never_above_the_clean_and_fall_with_epsilon_and_restarts(context):
    model = train(student(), context, FRAGILE)
    test = context.data.test
    with torch.no_grad():
        clean = context.task.scores(model(*test.inputs).numpy(), test.labels.numpy())
    means = [clean.mean()]
    for epsilon in (0.02, 0.1, 0.3):
        attack = Attack(epsilon=epsilon, step=epsilon / 4, steps=8)
        bounds = Bounds.of(context.data.train, attack)
        scores = robust_scores(model, test, context.task, attack, bounds, 0)
        assert scores.shape == (96,)
        assert (scores <= clean).all()
        means.append(scores.mean())
        more = robust_scores(model, test, context.task, attack, bounds, 0, restarts=3)
        assert (more <= scores).all()
        np.testing.assert_array_equal(robust_scores(model, test, context.task, attack, bounds, 0), scores)
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.5 * means[0]


def test_the_teachers_temperature_of_ltd_softens_targets_and_a_lower_one_sharpens_them(context):
    step = drawn(context)
    seen = {}
    for temperature in (0.5, 1.0, 2.0, 20.0):
        settings = LowTemperature(attack=ATTACK, teacher_temperature=temperature)
        (policy,) = policies([settings], student(), context)
        changed = policy.change(step)
        torch.testing.assert_close(changed.teacher, step.teacher / temperature)
        assert torch.equal(changed.teacher.argmax(1), step.teacher.argmax(1))
        assert not torch.equal(changed.inputs[0], step.inputs[0])
        seen[temperature] = mean_entropy(changed.teacher)
    assert list(seen.values()) == sorted(seen.values())


def test_what_changes_inputs_comes_before_what_answers_for_them(context):
    """PS-KD keeps the past student's answers for the inputs of the step: they must be those of the changed inputs."""
    asked = []

    class Watch(Policy):
        reads_teacher = False

        def change(self, step: Drawn) -> Drawn:
            asked.append(step.inputs[0])
            return step

    training = Training(
        epochs=2, batch=64, objectives=(HardLabels(),),
        strategies=(PastSelf(), Adversarial(attack=ATTACK, clean_share=0.5)),
    )  # fmt: skip
    train(student(), context, training, extra=[Watch()])  # would raise for 64 answers to 128 samples
    assert all(len(inputs) == 128 for inputs in asked)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_several_teachers_answer_for_the_clean_samples_and_are_then_combined(context, share):
    context = dataclasses.replace(context, teacher=Several([Good(2.0), Good(1.0)]))
    settings = LowTemperature(attack=ATTACK, clean_share=share, teacher_temperature=2.0)
    attack, combined = policies([settings, Combined()], sharp(), context)
    changed = combined.change(attack.change(step := drawn(context)))
    expected = torch.softmax(step.teacher / 2.0, -1).mean(1).repeat(2 if share else 1, 1)
    torch.testing.assert_close(changed.teacher.exp(), expected)
    train(student(), context, Training(epochs=1, batch=64, strategies=(Combined(), settings)))


def test_a_feature_objective_sees_the_student_on_the_changed_inputs(context):
    teacher = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval().requires_grad_(False)
    context = dataclasses.replace(context, teacher=teacher)
    training = Training(
        epochs=1,
        batch=64,
        objectives=(SoftTargets(), Hints(layers={"0": "0"})),
        strategies=(Adversarial(attack=ATTACK),),
    )
    trained = train(student(), context, training)
    assert [*trained.state_dict()] == [*student().state_dict()]
    assert not any(module._forward_hooks for module in [*trained.modules(), *teacher.modules()])


# Two teachers


class Unsure(nn.Module):
    """A robust teacher: the large features alone, and less sure."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x @ CENTRES.T


@pytest.fixture
def two(context):
    return dataclasses.replace(context, teacher=Several([Good(), Unsure()]))


def test_the_clean_teacher_answers_for_clean_samples_and_the_robust_one_for_adversarial_ones(two):
    (policy,) = policies([TwoTeachers(attack=ATTACK)], student(), two)
    step = drawn(two, stored=False)
    changed = policy.change(step)
    assert torch.equal(changed.inputs[0][:24], step.inputs[0])
    assert not torch.equal(changed.inputs[0][24:], step.inputs[0])
    torch.testing.assert_close(changed.teacher[:24], Good()(step.inputs[0]))
    torch.testing.assert_close(changed.teacher[24:], Unsure()(changed.inputs[0][24:]))
    (turned,) = policies([TwoTeachers(attack=ATTACK, clean=1, robust=0)], student(), two)
    torch.testing.assert_close(turned.change(step).teacher[:24], Unsure()(step.inputs[0]))


def test_temperatures_bring_the_teachers_entropies_together(two):
    (policy,) = policies([TwoTeachers(attack=ATTACK, temperature_rate=0.05)], student(), two)

    def gap() -> float:
        teacher = policy.change(drawn(two, stored=False)).teacher
        return mean_entropy(teacher[:24]) - mean_entropy(teacher[24:])

    assert policy.temperatures.tolist() == [1.0, 1.0]
    first = gap()
    assert first < -0.1  # the clean teacher is the surer one
    for _ in range(120):
        last = gap()
    assert abs(last) < 0.1 * abs(first)
    clean, robust_one = policy.temperatures.tolist()
    assert clean > 2
    assert robust_one == 1.0
    limited, = policies(
        [TwoTeachers(attack=ATTACK, temperature_rate=0.05, highest_temperature=1.2)], student(), two
    )  # fmt: skip
    for _ in range(10):
        limited.change(drawn(two, stored=False))
    assert limited.temperatures[0] == 1.2


def test_the_half_that_learns_more_slowly_weighs_more(two):
    (policy, labels, kd) = policies([TwoTeachers(attack=ATTACK), HardLabels(), SoftTargets()], student(), two)
    batch = batch_of(drawn(two), torch.zeros(24, 3))

    def weighed(clean: float, adversarial: float) -> tuple[float, float]:
        values = torch.cat([torch.full((12,), clean), torch.full((12,), adversarial)])
        losses = policy.weigh(batch, {labels: values, kd: values})
        assert torch.equal(losses[labels], values)  # labels are no teacher's
        return losses[kd][0].item() / clean, losses[kd][-1].item() / adversarial

    assert weighed(4.0, 1.0) == pytest.approx((1.0, 1.0))  # equal weights at first, however unlike the losses
    share = 0.5
    for clean, adversarial in ((2.0, 1.0), (1.0, 0.9), (1.0, 0.9)):
        rates = clean / 4.0, adversarial / 1.0
        share -= 0.025 * (share - rates[0] / sum(rates))
        assert weighed(clean, adversarial) == pytest.approx((2 * share, 2 * (1 - share)))
    assert share < 0.5


def test_the_balance_converges_to_the_ratio_of_relative_losses():
    share, first, now = (torch.tensor(x, dtype=torch.float64) for x in (0.5, [2.0, 2.0], [0.5, 1.5]))
    for _ in range(400):
        share = balanced(share, now, first, 0.025)
    assert abs(float(share) - 0.25) < 1e-4
    nothing = balanced(share, torch.zeros(2, dtype=torch.float64), first, 0.025)
    assert torch.equal(nothing, share)


def test_two_teachers_that_are_not_there_are_refused(context, two):
    with pytest.raises(ModelError, match="needs several teachers"):
        policies([TwoTeachers()], student(), context)
    with pytest.raises(ModelError, match="there are 2, numbered from 0"):
        policies([TwoTeachers(robust=2)], student(), two)


@pytest.mark.parametrize(
    "strategy",
    [
        Adversarial(attack=ATTACK, against="student", clean_share=0.3),
        LowTemperature(attack=ATTACK),
        TwoTeachers(attack=ATTACK, temperature_rate=0.05),
    ],
    ids=lambda strategy: strategy.kind,
)
def test_an_adversarial_training_that_was_killed_ends_with_the_same_bytes(context, two, tmp_path, strategy):
    training = Training(
        epochs=3, batch=64, checkpoint_seconds=1e-6, objectives=(HardLabels(), SoftTargets(temperature=1.0)),
        strategies=(strategy,),
    )  # fmt: skip
    same_bytes_after_a_kill(student, two if strategy.kind == "mtard" else context, training, 4, tmp_path / "whole")


def test_a_model_whose_outputs_have_no_gradient_is_refused(context):
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * Good()(x.detach())

    for model in (Closed(), Closed().requires_grad_(False)):
        with pytest.raises(ModelError, match="there is none"):
            robust(model, context, ATTACK)
