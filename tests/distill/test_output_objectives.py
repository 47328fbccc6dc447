"""Objectives on outputs in the loop: named in a recipe, read without torch, checkpointed with what they remember."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from killing import whole_and_gone_on
from networks import normal
from pydantic import ValidationError
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.logit_settings import Likelihoods, MovingTarget, OutputObjective
from kdc.distill.loop import train
from kdc.distill.policies import function_of, policies
from kdc.distill.policy import Batch
from kdc.distill.settings import Training

KINDS = [kind.model_fields["kind"].default for kind in get_args(OutputObjective) if kind is not Likelihoods]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))


def seeded(model: nn.Module, seed: int) -> nn.Module:
    return normal(model, seed)


def training(*objectives: dict[str, object], **changes: object) -> Training:
    settings = {"epochs": 3, "batch": 24, "checkpoint_seconds": 1e-6, **changes}
    return Training.model_validate({"objectives": list(objectives), **settings})


def state(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_names_an_objective_by_its_kind_and_the_loop_trains_on_it(small_context, kind):
    student = seeded(network(), 6)
    before = state(student).clone()
    train(student, small_context, training({"kind": kind}, epochs=1))
    assert torch.isfinite(state(student)).all()
    assert not torch.equal(before, state(student))


def test_the_weight_and_the_parameters_of_a_recipe_reach_the_function(small_context):
    torch.manual_seed(0)
    batch = Batch(
        index=torch.arange(2), labels=torch.tensor([0, 2]), student=torch.randn(2, 3), teacher=torch.randn(2, 3)
    )
    settings = training({"kind": "dkd", "alpha": 0.5, "beta": 2, "temperature": 3, "weight": 0.7})
    (policy,) = policies(settings.objectives, network(), small_context)
    expected = function_of(settings.objectives[0])(
        batch.student, batch.teacher, batch.labels, temperature=3.0, alpha=0.5, beta=2.0
    )
    torch.testing.assert_close(policy.loss(batch), 0.7 * expected)


def test_a_moving_target_moves_with_the_training(small_context):
    settings = MovingTarget(start=0.2, rate=0.0)
    (policy,) = policies([settings], network(), small_context)
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.zeros(4, dtype=torch.long)

    def at(progress: float) -> Batch:
        return Batch(index=torch.arange(4), labels=labels, student=student, teacher=teacher, progress=progress)

    first = policy.loss(at(0.0)).mean()
    for progress in (0.0, 0.5, 0.99):
        policy.after(at(progress))
    assert policy.loss(at(1.0)).mean() > 2 * first
    policy.after(at(1.0))
    assert policy.trained.get_buffer("state")[0] == 1.0


@pytest.mark.parametrize("killed_after", [2, 5])
@pytest.mark.parametrize("objective", [{"kind": "taid", "rate": 0.5}, {"kind": "mekd"}], ids=["taid", "mekd"])
def test_what_an_objective_remembers_goes_on_where_a_killed_training_was(
    small_context, tmp_path, objective, killed_after
):
    hurried = training(objective)
    whole, again = whole_and_gone_on(lambda: seeded(network(), 6), small_context, hurried, tmp_path, killed_after)
    assert torch.equal(state(whole), state(again))


def test_settings_are_read_without_torch():
    code = (
        "import sys, kdc.distill.settings as s; s.Training(objectives=[{'kind': 'dkd'}]); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_teacher_of_other_classes_is_refused_by_name_of_what_bridges_them(small_context):
    student = seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), 6)
    with pytest.raises(ModelError, match=r"\[24, 4\], the teacher's \[24, 3\](.|\n)*uld, hints, .*crd"):
        train(student, small_context, training({"kind": "kd"}, epochs=1))
    before = state(student).clone()
    train(student, small_context, training({"kind": "uld"}, epochs=1))
    assert not torch.equal(before, state(student))


def test_a_loss_on_logits_goes_with_one_on_probabilities_once_it_has_a_head_of_its_own(small_context):
    student = seeded(network(), 6)
    names = list(student.state_dict())
    train(student, small_context, training({"kind": "kd"}, {"kind": "dual_head", "loss": {"kind": "bckd", "focus": 2}}))
    assert list(student.state_dict()) == names
    with pytest.raises(ValidationError, match="kind: dual_head, loss: {kind: bckd}"):
        training({"kind": "kd"}, {"kind": "bckd"})


@pytest.mark.parametrize("loss", ["bckd", "binary-norm"])
def test_the_second_heads_loss_moves_the_layers_before_the_classifier_and_never_the_classifier(small_context, loss):
    student = seeded(network(), 6)
    settings = training({"kind": "dual_head", "weight": 2, "loss": {"kind": loss}}).objectives
    (policy,) = policies(settings, student, small_context)
    batch = small_context.data.train[:8]
    answers = small_context.teacher(*batch.inputs)
    values = policy.loss(
        Batch(index=torch.arange(len(batch)), labels=batch.labels, student=student(*batch.inputs), teacher=answers)
    )
    values.mean().backward()
    assert student[1].weight.grad.abs().max() > 0
    assert student[3].weight.grad is None
    assert policy.trained.weight.grad.abs().max() > 0
    hidden = student[:3](*batch.inputs)
    logits = hidden @ policy.trained.weight.T + policy.trained.bias
    settings_of_loss = settings[0].loss
    expected = 2 * function_of(settings_of_loss)(logits, answers, **settings_of_loss.arguments())
    torch.testing.assert_close(values, expected)
    policy.close()
    assert not any(module._forward_pre_hooks for module in student.modules())
