"""m2mKD: the meta model learns first, each module alone then, and nothing is added after."""

import dataclasses

import pytest
import torch
from networks import Residual, Tokens, batch_of, drawn, touched
from pydantic import ValidationError
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.distill.feature_settings import Hints, ModuleWise
from kdc.distill.module_wise import fitted, patched
from kdc.distill.policies import Policy, policies
from kdc.distill.taps import given_to

LAYERS = {"stages.0": "stages.0", "stages.1": "stages.1", "stages.2": "stages.2"}


def split(n: int, seed: int) -> Split:
    return Split((torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)),), torch.arange(n) % 3)


@pytest.fixture
def context(small_context) -> Context:
    data = dataclasses.replace(small_context.data, train=split(48, 1), calibration=split(16, 2))
    return dataclasses.replace(small_context, data=data, teacher=drawn(Residual(6), 1).eval().requires_grad_(False))


def values(policy: Policy, context: Context, student: nn.Module, progress: float, n: int = 12) -> torch.Tensor:
    return policy.loss(batch_of(context, student, progress, n=n))


def test_the_meta_model_and_the_teachers_stitches_learn_first(context):
    student = drawn(Residual(4), 0).train()
    (policy,) = policies([ModuleWise(layers=LAYERS)], student, context)
    values(policy, context, student, 0.1).mean().backward()
    assert touched(student) == set()
    assert touched(policy.of_student) == set()
    assert {name.split(".")[0] for name in touched(policy.meta)} == {"first", "parts", "head"}
    assert {name.split(".")[0] for name in touched(policy.of_teacher)} == {"0", "1", "2"}
    assert all(p.grad is None for p in context.teacher.parameters())
    policy.close()


def test_then_each_module_learns_alone_with_its_stitches_and_the_rest_is_fixed(context):
    student = drawn(Residual(4), 0).train()
    (policy,) = policies([ModuleWise(layers=LAYERS)], student, context)
    values(policy, context, student, 0.4).mean().backward()
    assert {name.split(".")[1] for name in touched(student)} == {"0", "1", "2"}  # no stem and no head
    assert touched(policy.meta) == set()
    assert touched(policy.of_teacher) == set()
    assert {name.split(".")[0] for name in touched(policy.of_student)} == {"0", "1", "2"}
    policy.close()


def test_no_gradient_of_one_modules_loss_reaches_another(context):
    student = drawn(Residual(4), 0).train()
    (policy,) = policies([ModuleWise(layers={"stages.1": "stages.1"})], student, context)
    values(policy, context, student, 0.4).mean().backward()
    assert {name.split(".")[1] for name in touched(student)} == {"1"}
    policy.close()


def test_after_that_it_adds_nothing(context):
    student = drawn(Residual(4), 0)
    (policy,) = policies([ModuleWise(layers=LAYERS, alone=0.5)], student, context)
    assert values(policy, context, student, 0.49).abs().max() > 0
    assert values(policy, context, student, 0.5).abs().max() == 0
    policy.close()


def test_a_module_that_is_the_teachers_with_the_teachers_stitches_costs_nothing(context):
    student = context.teacher
    (policy,) = policies([ModuleWise(layers=LAYERS)], student, context)
    policy.of_student.load_state_dict(policy.of_teacher.state_dict())
    assert values(policy, context, student, 0.4).abs().max() < 1e-6
    policy.close()


def test_running_statistics_and_other_objectives_features_are_of_the_whole_model_alone(context):
    student = drawn(Residual(4), 0).train()
    alone, hints = policies([ModuleWise(layers=LAYERS), Hints(layers={"stages.1": "stages.1"})], student, context)
    twin = drawn(Residual(4), 0).train()
    values(alone, context, student, 0.4)
    twin(*context.data.train[:12].inputs)
    for name, tensor in student.named_buffers():
        assert torch.equal(tensor, twin.get_buffer(name))
    seen = hints._taps[0].features["stages.1"]
    expected = twin.stages[1](twin.stages[0](twin.stem(context.data.train[:12].inputs[0])))
    torch.testing.assert_close(seen, expected)
    for policy in (alone, hints):
        policy.close()
    assert not any(
        m._forward_hooks or m._forward_pre_hooks for model in (student, context.teacher) for m in model.modules()
    )


@pytest.mark.parametrize("students", [lambda: Residual(4), lambda: Tokens(8, 3)], ids=["maps", "tokens"])
def test_modules_that_learned_alone_answer_more_like_the_teachers(context, students):
    student = drawn(students(), 0).train()
    (policy,) = policies([ModuleWise()], student, context)
    for progress, steps in ((0.1, 40), (0.4, 40)):
        parameters = (
            policy.trained.parameters() if progress < 0.2 else [*student.parameters(), *policy.of_student.parameters()]
        )
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        losses = []
        for _ in range(steps):
            loss = values(policy, context, student, progress, n=48).mean()
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < 0.7 * losses[0]
    policy.close()


def test_patches_hold_every_value_of_the_input_where_the_grid_divides_it():
    feature = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).reshape(2, 3, 4, 6)
    patches = patched(feature, (2, 3))
    assert patches.shape == (2, 12, 2, 3)
    corner = patches[0, :, 1, 2].reshape(3, 2, 2)
    assert torch.equal(corner, feature[0, :, 2:, 4:])
    assert patched(feature, (5,)).shape == (2, 12, 5)
    assert patched(torch.zeros(2, 7, 1), (2, 2)).shape == (2, 7, 2, 2)


def test_a_feature_fits_any_grid():
    feature = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert fitted(feature, (1, 2)).flatten().tolist() == [2.5, 4.5]
    assert fitted(feature, (4, 4))[0, 0, :, 0].tolist() == [0, 0, 4, 4]
    assert fitted(feature, (4,)).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]


def test_modules_that_cannot_run_by_themselves_and_wrong_shares_are_refused(context):
    with pytest.raises(ModelError, match=r"none with weights in stem.2 with stages.0.*\n.*name modules that have"):
        policies([ModuleWise(layers={"stem.2": "stages.0"})], Residual(4), context)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.join = nn.Bilinear(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.join(x, x)

    with pytest.raises(ModelError, match="'join' takes 2 tensors"):
        given_to(Two(), (torch.zeros(3, 4),), ["join"])
    with pytest.raises(ValidationError, match="set `alone` above `meta`"):
        ModuleWise(meta=0.5, alone=0.5)
