"""What TED, the selection of units, LELP and MEKD change, and when: each on its mechanism."""

import dataclasses

import numpy as np
import pytest
import torch
from networks import batch_of, normal, touched
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError, ModelError
from kdc.distill.alignment import Layer
from kdc.distill.feature_settings import Subclasses, TaskAware, TaskUnits
from kdc.distill.logit_settings import Emulated
from kdc.distill.objectives.features import hint
from kdc.distill.objectives.subclasses import folded
from kdc.distill.policies import policies
from kdc.distill.unit_selection import task_relevance
from kdc.tasks.classification import Classification


def drawn(model: nn.Module, seed: int) -> nn.Module:
    return normal(model, seed)


def layers(width: int, classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(36, width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, classes),
    )


@pytest.fixture
def context(small_context):
    return dataclasses.replace(small_context, teacher=drawn(layers(12), 1).eval().requires_grad_(False))


def test_teds_filters_learn_the_task_first_and_the_student_follows_them_then(context):
    student = drawn(layers(6), 2)
    (policy,) = policies([TaskAware(pairs=1, filters=0.25)], student, context)
    policy.loss(batch_of(context, student, 0.2)).mean().backward()
    assert touched(student) == set()
    assert {name.split(".")[1] for name in touched(policy.trained)} == {"student", "teacher", "heads"}
    policy.loss(batch_of(context, student, 0.25)).mean().backward()
    assert touched(student) != set()
    assert {name.split(".")[1] for name in touched(policy.trained)} == {"student"}
    policy.close()


def test_teds_matching_is_the_mean_squared_difference_of_filtered_features(context):
    student = drawn(layers(6), 2)
    (policy,) = policies([TaskAware(layers={"4": "2"}, weight=3.0)], student, context)
    values = policy.loss(batch_of(context, student, 0.9)).detach().numpy()
    inputs = context.data.train[:12].inputs[0]
    (filters,) = policy.trained
    pair = ((filters.student, student[:5](inputs)), (filters.teacher, context.teacher[:3](inputs)))
    own, other = (f.detach().numpy() @ m.weight.detach().numpy().T + m.bias.detach().numpy() for m, f in pair)
    np.testing.assert_allclose(values, 3 * ((own - other) ** 2).mean(1), rtol=1e-4)
    policy.close()


def test_a_trained_filter_lets_through_what_the_task_needs(context):
    """The teacher knows its labels; after the first part the head on its filter knows them too."""
    labels = context.teacher(*context.data.train.inputs).argmax(1)
    data = dataclasses.replace(context.data, train=Split(context.data.train.inputs, labels))
    context = dataclasses.replace(context, data=data)
    student = drawn(layers(6), 2)
    (policy,) = policies([TaskAware(layers={"4": "4"})], student, context)
    optimizer = torch.optim.Adam(policy.trained.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        loss = policy.loss(batch_of(context, student, 0.0, n=96)).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    (filters,) = policy.trained
    features = context.teacher[:5](*context.data.train.inputs)
    assert (filters.heads[1](filters.teacher(features)).argmax(1) == labels).float().mean() > 0.9
    policy.close()


def test_relevance_is_activation_times_gradient_and_nothing_for_what_the_head_does_not_read(context):
    teacher = context.teacher
    with torch.no_grad():
        teacher[5].weight[:, [1, 4, 7]] = 0
    examples = context.data.train[:20]
    layer = Layer("4", (12,), False, 0.5)
    found = task_relevance(teacher, layer, examples, Classification())
    hidden = teacher[:5](*examples.inputs).numpy()
    logits = hidden @ teacher[5].weight.numpy().T + teacher[5].bias.numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p[np.arange(20), examples.labels.numpy()] -= 1
    expected = np.abs(hidden * (p @ teacher[5].weight.numpy())).mean(0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)
    assert found[[1, 4, 7]].max() == 0
    assert not any(module._forward_hooks for module in teacher.modules())


def test_relevance_of_maps_is_the_mean_over_their_positions_and_what_follows_may_work_in_place():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    model = drawn(model, 3).train()
    split = Split((torch.randn((6, 1, 6, 6), generator=torch.Generator().manual_seed(0)),), torch.arange(6) % 3)
    found = task_relevance(model, Layer("0", (4, 4, 4), False, 0.5), split, Classification())
    maps = model[0](*split.inputs).detach().requires_grad_()
    loss = nn.functional.cross_entropy(model[4](maps.relu().mean((2, 3))), split.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, maps)
    torch.testing.assert_close(found, (maps * gradient).abs().detach().mean((0, 2, 3)))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_student_matches_the_most_relevant_units_directly(context):
    student = drawn(layers(6), 2)
    settings = TaskUnits(layers={"4": "4"}, samples=96)
    (policy,) = policies([settings], student, context)
    assert policy.trained is None
    values = policy.loss(batch_of(context, student, 0.0))
    relevance = task_relevance(context.teacher, Layer("4", (12,), False, 0.5), context.data.train, Classification())
    units = sorted(relevance.argsort(descending=True)[:6].tolist())
    inputs = context.data.train[:12].inputs[0]
    torch.testing.assert_close(values, hint(student[:5](inputs), context.teacher[:5](inputs)[:, units]))
    policy.close()


def test_a_wider_student_matches_all_units_with_its_first(context):
    student = drawn(layers(20), 2)
    (policy,) = policies([TaskUnits(layers={"4": "4"})], student, context)
    values = policy.loss(batch_of(context, student, 0.0))
    inputs = context.data.train[:12].inputs[0]
    torch.testing.assert_close(values, hint(student[:5](inputs)[:, :12], context.teacher[:5](inputs)))
    policy.close()


def test_a_head_of_subclasses_learns_to_answer_as_the_teacher_does_once_folded(context):
    student = drawn(layers(10), 2)
    (policy,) = policies([Subclasses(subclasses=3)], student, context)
    optimizer = torch.optim.Adam([*student.parameters(), *policy.trained.parameters()], lr=1e-2)
    before = student[5].weight.clone()
    for _ in range(150):
        loss = policy.loss(batch_of(context, student, 0.0, n=96)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = batch_of(context, student, 0.0, n=96)
    answer = folded(policy.trained.head(student[:5](*context.data.train.inputs)), 3)
    assert answer.shape == (96, 3)
    assert (answer.argmax(1) == batch.teacher.argmax(1)).float().mean() > 0.9
    assert torch.equal(before, student[5].weight)  # the student's own head learns from other objectives
    policy.close()


def test_subclasses_come_from_named_examples_and_too_few_of_them_are_refused(context):
    made = [policies([Subclasses(samples=60)], drawn(layers(6), 2), context)[0] for _ in range(2)]
    assert torch.equal(made[0].wide.directions.axes, made[1].wide.directions.axes)
    other = dataclasses.replace(context, seed=1)
    (elsewhere,) = policies([Subclasses(samples=60)], drawn(layers(6), 2), other)
    assert not torch.equal(made[0].wide.directions.axes, elsewhere.wide.directions.axes)
    for policy in (*made, elsewhere):
        policy.close()
    with pytest.raises(DataError, match="ask for fewer subclasses"):
        policies([Subclasses(samples=6)], drawn(layers(6), 2), context)
    assert not any(module._forward_pre_hooks for module in context.teacher.modules())


def test_a_generator_learns_inputs_first_and_the_student_learns_through_it_then(context):
    student = drawn(layers(6), 2)
    (policy,) = policies([Emulated(generator=0.5)], student, context)
    policy.loss(batch_of(context, student, 0.4)).mean().backward()
    assert touched(student) == set()
    assert len(touched(policy.trained)) == 6
    policy.loss(batch_of(context, student, 0.5)).mean().backward()
    assert len(touched(student)) == 6
    assert touched(policy.trained) == set()
    policy.close()
    assert not any(module._forward_pre_hooks for module in student.modules())


def test_the_student_that_answers_alike_costs_nothing_and_following_the_distance_brings_it_there(context):
    (policy,) = policies([Emulated(generator=0.5, weight=2.0)], context.teacher, context)
    assert policy.loss(batch_of(context, context.teacher, 0.9)).abs().max() == 0
    policy.close()
    student = drawn(layers(6), 2)
    (policy,) = policies([Emulated(generator=0.5)], student, context)
    for progress, parameters, steps in ((0.0, policy.trained.parameters(), 40), (0.9, student.parameters(), 80)):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for _ in range(steps):
            loss = policy.loss(batch_of(context, student, progress, n=96)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    after = batch_of(context, student, 0.0, n=96)
    assert (after.student.argmax(1) == after.teacher.argmax(1)).float().mean() > 0.8
    policy.close()


def test_of_a_hard_teacher_only_the_class_is_seen_and_no_layer_of_its(context):
    context.teacher.predict_only = True
    student = drawn(layers(6), 2)
    (policy,) = policies([Emulated(hard=True)], student, context)
    batch = batch_of(context, student, 0.9)
    sure = dataclasses.replace(batch, teacher=5 * batch.teacher)
    torch.testing.assert_close(policy.loss(batch), policy.loss(sure))
    policy.close()
    (soft,) = policies([Emulated()], student, context)
    assert not torch.allclose(soft.loss(batch), soft.loss(sure))
    soft.close()


def test_inputs_that_are_no_numbers_are_refused(context):
    numbers = Split((torch.zeros((4, 36), dtype=torch.int64),), torch.zeros(4, dtype=torch.int64))
    data = dataclasses.replace(context.data, calibration=numbers)
    with pytest.raises(ModelError, match="the first input is torch.int64\n.*predictions"):
        policies([Emulated()], layers(6), dataclasses.replace(context, data=data))
