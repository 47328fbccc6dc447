"""What an attack finds of a quantized model: as much as of the float model, for its gradient passes the rounding."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdc.distill.attack import Bounds, attacked
from kdc.distill.modes import differentiable
from kdc.distill.policies import policies
from kdc.distill.policy import Drawn
from kdc.distill.strategy_settings.adversarial import Adversarial, Attack
from kdc.numerics.affine import Affine
from kdc.tasks.classification import Classification
from passes.quantize.quantizers import Quantizer, in_float

ATTACK = Attack(epsilon=0.05, step=0.01, steps=8)
NOISE = Attack(epsilon=0.05, step=1e-9, steps=1)  # the random start, and no more


@pytest.fixture(params=["separable", "residual"])
def quantized(request, lowered, quantization_context):
    """A quantized model, and what a pass may use beside its float model."""
    model = copy.deepcopy(lowered.quantized(request.param).model).eval()
    context = quantization_context(lowered.float(request.param).model)
    return model, dataclasses.replace(context, task=Classification())


def mean_loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model(inputs), labels))


def raised(model: nn.Module, attack: Attack, context) -> float:
    """By how much the attack raises the mean loss."""
    split = context.data.validation
    bounds, generator = Bounds.of(split, attack), torch.Generator().manual_seed(0)
    (changed,) = attacked(
        model, split.inputs, lambda outputs: context.task.loss(outputs, split.labels), attack, bounds, generator
    )
    return mean_loss(model, changed, split.labels) - mean_loss(model, *split.inputs, split.labels)


def test_the_attack_raises_a_quantized_models_loss_nearly_as_much_as_the_float_models(quantized):
    model, context = quantized
    found = raised(model, ATTACK, context)
    with in_float(model):
        in_floats = raised(model, ATTACK, context)
    assert found > 0.8 * in_floats
    assert found > 3 * abs(raised(model, NOISE, context))


def test_a_strategy_with_an_attack_leads_a_quantized_student_away_by_its_gradient(quantized):
    model, context = quantized
    samples = context.data.train[:64]
    drawn = Drawn(
        number=0, index=torch.arange(64), inputs=samples.inputs, labels=samples.labels,
        teacher=context.teacher(*samples.inputs),
    )  # fmt: skip
    losses = []
    for attack in (NOISE, ATTACK):
        (policy,) = policies([Adversarial(attack=attack)], model.train(), context)
        (changed,) = policy.change(drawn).inputs
        assert model.training
        losses.append(mean_loss(model.eval(), changed, samples.labels))
    clean = mean_loss(model, *samples.inputs, samples.labels)
    assert losses[1] - clean > 3 * abs(losses[0] - clean)


def test_a_quantizer_rounds_as_before_and_lets_gradients_through_for_as_long_as_it_is_asked_to():
    quantizer = Quantizer(Affine(0.02, 128, 0, 255)).eval()
    x = torch.tensor([0.513, -1.007, 100.0], requires_grad=True)
    rounded = quantizer(x)
    (without,) = torch.autograd.grad(rounded.sum(), x)
    with differentiable(quantizer):
        assert not quantizer.training
        passed = quantizer(x)
        (slope,) = torch.autograd.grad(passed.sum(), x)
    (again,) = torch.autograd.grad(quantizer(x).sum(), x)
    torch.testing.assert_close(passed, rounded)
    assert slope.tolist() == [1.0, 1.0, 0.0]
    assert without.tolist() == again.tolist() == [0.0, 0.0, 0.0]
