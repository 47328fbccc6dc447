"""Every objective on features works from a recipe, for every family that it can compare, and is gone after the training."""

import dataclasses
import typing
from pathlib import Path

import pytest
import torch
from networks import Encoder, Residual, Tokens, batch_of, drawn, perceptron
from pydantic import TypeAdapter
from torch import nn

from kdc.core.budget import Budget
from kdc.core.contract import Context
from kdc.core.data import Split, Splits
from kdc.core.errors import ModelError
from kdc.core.observe import Note, silent
from kdc.distill.feature_settings import AnyFeatureObjective, Hints, Paired
from kdc.distill.kinds import across_classes
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Policy
from kdc.distill.settings import Objective, SoftTargets, Training
from kdc.tasks.classification import Classification
from targets.device import load_device

KINDS = sorted(settings().kind for settings in typing.get_args(AnyFeatureObjective))
MAPS = [kind for kind in KINDS if kind != "attention_relations"]
VECTORS = [
    "hints",
    "vkd",
    "srd",
    "rkd",
    "crd",
    "wcord",
    "mi_alpha",
    "ofa",
    "dual_head",
    "dynamic_contrastive",
    "lelp",
    "ted",
    "task_units",
]
TRAINED = ["hints", "masked_recovery", "mi_alpha", "crd", "wcord", "dual_head", "lelp", "ted", "task_units", "m2mkd"]
FROM_ANSWERS = ["ofa", "dual_head"]
FAMILIES = {
    "conv-conv": (lambda: Residual(4), lambda: Residual(8), MAPS),
    "conv-tokens": (lambda: Residual(4), lambda: Tokens(8, 3), MAPS),
    "tokens-conv": (lambda: Tokens(8, 2), lambda: Residual(4), MAPS),
    "tokens-tokens": (lambda: Tokens(8, 2), lambda: Encoder(16, 3), MAPS),
    "one tokenizer": (lambda: Tokens(8, 2), lambda: Tokens(16, 3), ["attention_relations"]),
    "mlp-mlp": (lambda: perceptron(8), lambda: perceptron(16), VECTORS),
}  # fmt: skip


def settings_of(kind: str, **more: object) -> Objective:
    return TypeAdapter(Objective).validate_python({"kind": kind, **more})


def split(n: int, seed: int) -> Split:
    return Split((torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)),), torch.arange(n) % 3)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    data = Splits(split(48, 2), split(16, 3), split(16, 4), split(16, 5), "fingerprint", augment=None)
    return Context(
        step="test", device=load_device("cpu-ort"), task=Classification(), data=data, teacher=nn.Identity(),
        budget=Budget(), seed=0, work=tmp_path / "work", cache=tmp_path / "cache", emit=silent,
        teacher_cost=lambda: None, forecasts=lambda artifacts: [],
    )  # fmt: skip


def with_teacher(context: Context, teacher: nn.Module, **changes: object) -> Context:
    return dataclasses.replace(context, teacher=drawn(teacher, 1).eval().requires_grad_(False), **changes)


def made(settings: Objective, student: nn.Module, context: Context) -> Policy:
    (policy,) = policies([settings], student, context)
    return policy


def step(policy: Policy, student: nn.Module, context: Context) -> torch.Tensor:
    return policy.loss(batch_of(context, student, 0.5))


@pytest.mark.parametrize(("family", "kind"), [(name, kind) for name, f in FAMILIES.items() for kind in f[2]])
def test_it_gives_each_example_a_loss_that_falls_when_it_is_followed(context, family, kind):
    of_student, of_teacher, _ = FAMILIES[family]
    context = with_teacher(context, of_teacher())
    student = drawn(of_student(), 0).train()
    policy = made(settings_of(kind), student, context)
    parts = nn.ModuleList([student, *([policy.trained] if policy.trained else [])])
    optimizer = torch.optim.Adam(parts.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        torch.manual_seed(0)  # masked_recovery masks the same channels
        values = step(policy, student, context)
        assert values.shape == (12,)
        losses.append(float(values.detach().mean()))
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any(parameter.grad is not None for parameter in context.teacher.parameters())
    policy.close()
    for model in (student, context.teacher):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_its_weight_multiplies_it(context, kind):
    context = with_teacher(context, Encoder(8, 2))
    student = drawn(Encoder(8, 2), 0)
    values = []
    for weight in (1.0, 3.0):
        policy = made(settings_of(kind, weight=weight), student, context)
        torch.manual_seed(0)
        values.append(step(policy, student, context))
        policy.close()
    torch.testing.assert_close(values[1], 3 * values[0])


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_in_the_one_loop_and_the_student_is_as_it_was_but_for_its_weights(context, kind):
    context = with_teacher(context, Encoder(8, 2))
    student = drawn(Encoder(8, 2), 0)
    names, before = list(student.state_dict()), torch.random.get_rng_state()
    modules = [(path, type(module)) for path, module in student.named_modules()]
    train(student, context, Training(epochs=1, batch=16, views=1, objectives=(SoftTargets(), settings_of(kind))))
    assert list(student.state_dict()) == names
    assert [(path, type(module)) for path, module in student.named_modules()] == modules
    assert torch.equal(before, torch.random.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


@pytest.mark.parametrize(
    ("settings", "students", "teachers"),
    [
        ({"kind": "dual_view", "projector": "attention"}, lambda: Residual(4), lambda: Tokens(8, 2)),
        ({"kind": "dual_view", "projector": "attention"}, lambda: Tokens(8, 2), lambda: Residual(4)),
        ({"kind": "wcord", "whole": 0}, lambda: Residual(4), lambda: Residual(8)),
        ({"kind": "wcord", "local": 0}, lambda: Residual(4), lambda: Residual(8)),
        ({"kind": "crd", "memory": 0}, lambda: Residual(4), lambda: Residual(8)),
        ({"kind": "crd", "memory": 20}, lambda: Residual(4), lambda: Residual(8)),
    ],
    ids=str,
)
def test_what_a_recipe_chooses_is_trained_with(context, settings, students, teachers):
    context = with_teacher(context, teachers())
    student = drawn(students(), 0)
    policy = made(TypeAdapter(Objective).validate_python(settings), student, context)
    values = step(policy, student, context)
    values.mean().backward()
    assert torch.isfinite(values).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in policy.trained.parameters())
    policy.close()


def test_pairs_are_shown_with_their_cka(context):
    notes = []
    context = with_teacher(context, Residual(8), emit=notes.append)
    made(Hints(pairs=2), drawn(Residual(4), 0), context).close()
    assert [note.text.count("(CKA 0.") for note in notes if isinstance(note, Note)] == [2]
    assert notes[0].text.startswith("hints pairs ")


def test_layers_of_a_recipe_override_the_pairing(context):
    notes = []
    context = with_teacher(context, Residual(8), emit=notes.append)
    made(Hints(layers={"stem": "stages.1"}), drawn(Residual(4), 0), context).close()
    assert "stem with stages.1 (CKA" in notes[0].text


@pytest.mark.parametrize("kind", [k for k in MAPS if isinstance(settings_of(k), Paired)])
def test_a_wrong_layer_is_named_and_no_hook_stays(context, kind):
    context = with_teacher(context, Residual(8))
    student = Residual(4)
    with pytest.raises(ModelError, match=r"'no.such'"):
        made(settings_of(kind, layers={"stem": "no.such"}), student, context)
    assert not any(module._forward_hooks for model in (student, context.teacher) for module in model.modules())


def test_a_second_objective_that_cannot_be_made_takes_the_first_ones_hooks_away(context):
    context = with_teacher(context, Residual(8))
    student = Residual(4)
    with pytest.raises(ModelError, match=r"'no.such'"):
        policies([Hints(), Hints(layers={"stem": "no.such"})], student, context)
    assert not any(module._forward_hooks for model in (student, context.teacher) for module in model.modules())


def test_attention_relations_of_a_convolutional_net_name_another_objective(context):
    with pytest.raises(ModelError, match="no attention layer in the student\n.*hints"):
        made(settings_of("attention_relations"), Residual(4), with_teacher(context, Encoder(8, 2)))


def test_class_attention_is_nothing_for_the_teacher_itself(context):
    context = with_teacher(context, Residual(4))
    policy = made(settings_of("class_attention"), context.teacher, context)
    assert float(step(policy, context.teacher, context).detach().abs().max()) < 1e-9
    policy.close()


def test_some_do_without_the_teachers_own_forward(context):
    context = with_teacher(context, Residual(8))
    found = {kind: made(settings_of(kind), Residual(4), context) for kind in MAPS}
    assert sorted(kind for kind, policy in found.items() if not policy.runs_teacher) == sorted([*FROM_ANSWERS, "m2mkd"])
    for policy in found.values():
        policy.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_gives_predictions_alone_is_refused_where_its_layers_are_needed(context, kind):
    context = with_teacher(context, Encoder(8, 2))
    context.teacher.predict_only = True
    student = Encoder(8, 2)
    if kind in FROM_ANSWERS:
        made(settings_of(kind), student, context).close()
    else:
        with pytest.raises(
            ModelError, match=rf"{kind} needs the teacher's inner layers(.|\n)*kd, .*predictions.*ofa, dual_head"
        ):
            made(settings_of(kind), student, context)
    assert not any(module._forward_hooks for model in (student, context.teacher) for module in model.modules())


class Renamed(nn.Module):
    """A student of more classes than its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Encoder(8, 2), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("kind", [kind for kind in across_classes() if kind != "uld"])
def test_an_objective_that_bridges_classes_learns_from_a_teacher_of_others(context, kind):
    context = with_teacher(context, Encoder(8, 2))
    student = drawn(Renamed(), 0)
    before = torch.cat([tensor.flatten() for tensor in student.state_dict().values()])
    train(student, context, Training(epochs=1, batch=16, views=1, objectives=(settings_of(kind),)))
    assert not torch.equal(before, torch.cat([tensor.flatten() for tensor in student.state_dict().values()]))


@pytest.mark.parametrize(
    "kind", ["hints", "masked_recovery", "mi_alpha", "crd", "wcord", "dual_head", "lelp", "ted", "task_units"]
)
def test_a_training_that_was_killed_ends_with_the_same_bytes(context, kind, tmp_path):
    context = with_teacher(context, Residual(4))
    training = Training(
        epochs=2, batch=16, views=1, checkpoint_seconds=1e-6, objectives=(SoftTargets(), settings_of(kind))
    )
    whole = drawn(Residual(2), 0)
    train(whole, dataclasses.replace(context, work=tmp_path / "whole"), training)

    class Killed(BaseException):
        pass

    student, steps = drawn(Residual(2), 0), 0

    def kill(*_: object) -> None:
        nonlocal steps
        steps += student.training
        if steps > 4:
            raise Killed

    student.register_forward_pre_hook(kill)
    with pytest.raises(Killed):
        train(student, context, training)
    again = train(drawn(Residual(2), 0), context, training)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
