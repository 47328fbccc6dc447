"""LSSKD: inner layers learn labels and rotations and teach one another, and nothing of it is in the student after."""

import dataclasses

import numpy as np
import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.core.spec import TensorSpec
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn
from kdc.distill.settings import HardLabels, Hints, SoftTargets, Training
from kdc.distill.strategy_settings.layered import Layered
from passes.export.lower import lower


def network(seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model


def stepped(policy, student: nn.Module, context, n: int = 5, **changes: object) -> tuple[Batch, torch.Tensor]:
    samples = context.data.train[torch.arange(n)]
    drawn = Drawn(number=0, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=None)
    drawn = policy.change(drawn)
    batch = Batch(index=drawn.index, inputs=drawn.inputs, labels=drawn.labels, student=student(*drawn.inputs), teacher=torch.empty(0))  # fmt: skip  # noqa: E501
    batch = dataclasses.replace(batch, **changes)
    return batch, policy.loss(batch)


def logits_of(policy, student: nn.Module, images: torch.Tensor) -> list[np.ndarray]:
    """Each stage's logits for these images, without the policy's own taps."""
    found, modules = [], dict(student.named_modules())
    for layer, classifier in zip(policy.layers, policy.classifiers, strict=True):
        kept = []
        handle = modules[layer.path].register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
        student(images)
        handle.remove()
        found.append(classifier(layer.channels_first(kept[0])).detach().double().numpy())
    return found


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row - row.max()
    return row - np.log(np.exp(row).sum())


def test_the_loss_is_that_of_joint_labels_and_of_each_stage_beside_the_next_deeper(small_context):
    student = network().eval()
    settings = Layered(stages=2, temperature=2.0, between=0.7, weight=1.5)
    (policy,) = policies([settings], student, small_context)
    batch, found = stepped(policy, student, small_context)
    expected = np.zeros(5)
    for turn in range(4):
        images = torch.stack(
            [torch.from_numpy(np.rot90(image.numpy(), turn, (1, 2)).copy()) for image in batch.inputs[0]]
        )
        shallow, deep = logits_of(policy, student, images)
        for i in range(5):
            place = turn * 3 + int(batch.labels[i])
            labels = -(log_softmax(shallow[i])[place] + log_softmax(deep[i])[place]) / 2
            log_p, log_q = log_softmax(deep[i] / 2), log_softmax(shallow[i] / 2)
            agree = 4 * (np.exp(log_p) * (log_p - log_q)).sum()
            expected[i] += 1.5 * (labels + 0.7 * agree) / 4
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4)
    policy.close()


def test_nothing_flows_from_the_shallow_stage_into_the_deeper_ones_classifier(small_context):
    student = network().eval()
    (policy,) = policies([Layered(stages=2)], student, small_context)
    deep = policy.classifiers[1].head.weight
    slopes = []
    for between in (0.0, 5.0):
        policy.settings = Layered(stages=2, between=between)
        slopes.append(torch.autograd.grad(stepped(policy, student, small_context)[1].sum(), [deep, policy.classifiers[0].head.weight]))  # fmt: skip  # noqa: E501
    torch.testing.assert_close(slopes[0][0], slopes[1][0])
    assert not torch.allclose(slopes[0][1], slopes[1][1])
    policy.close()


def test_turned_images_move_no_batchnorm_statistics_and_no_feature_that_others_read(small_context):
    student = network().train()
    policy, hints = policies([Layered(), Hints(layers={"2": "1"})], student, _with_maps(small_context))
    plain = network().train()
    batch, _ = stepped(policy, student, small_context, n=8)
    plain(*batch.inputs)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), student.state_dict().values(), strict=True)
    )
    assert all(len(feature) == 8 for feature in hints._taps[0].features.values())
    policy.close()
    hints.close()


def _with_maps(context):
    teacher = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    return dataclasses.replace(context, teacher=teacher.eval().requires_grad_(False))


def test_an_unlabelled_sample_learns_from_the_deeper_stage_alone(small_context):
    student = network().eval()
    (policy,) = policies([Layered(stages=2, between=0.0)], student, small_context)
    _, found = stepped(policy, student, small_context, n=3, labels=torch.tensor([0, -1, 2]))
    assert found[1] == 0
    assert (found[[0, 2]] > 0).all()
    policy.close()


def test_inputs_that_do_not_turn_learn_the_labels_alone_and_a_note_says_so(small_context):
    seen = []
    student = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    flat = Split((torch.randn((12, 7), generator=torch.Generator().manual_seed(0)),), torch.arange(12) % 3)
    data = dataclasses.replace(small_context.data, train=flat, calibration=flat)
    context = dataclasses.replace(small_context, data=data, teacher=nn.Linear(7, 3), emit=seen.append)
    (policy,) = policies([Layered(stages=2)], student, context)
    assert policy.turns == 1
    assert all(classifier.head.weight.shape[0] == 3 for classifier in policy.classifiers)
    assert stepped(policy, student, context)[1].shape == (5,)
    assert any("labels alone" in event.text for event in seen if isinstance(event, Note))
    policy.close()


def test_inner_layers_come_to_know_labels_and_rotations(small_context):
    n = 120
    generator = torch.Generator().manual_seed(3)
    inputs = 0.2 * torch.randn((n, 1, 6, 6), generator=generator)
    labels = torch.arange(n) % 3
    for i in range(n):  # strokes of three lengths along the upper edge: turned, they lie along another
        inputs[i, 0, 0, : 2 * (int(labels[i]) + 1)] += 3
    train_split = Split((inputs,), labels)
    context = dataclasses.replace(small_context, data=dataclasses.replace(small_context.data, train=train_split))
    student = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    (policy,) = policies([Layered(stages=2)], student, context)
    assert [layer.path for layer in policy.layers] == ["2", "4"]  # not the flattened pixels, which learn nothing
    training = Training(epochs=40, batch=40, learning_rate=2e-2, objectives=(HardLabels(weight=1.0),))
    train(student, context, training, extra=[policy])
    upside_down = inputs.rot90(2, (2, 3))
    _, deep = logits_of(policy, student, upside_down)
    assert (deep.argmax(1) == 2 * 3 + labels.numpy()).mean() > 0.8


def test_what_is_exported_has_the_structure_of_the_plain_student(small_context):
    strategies = (Layered(stages=2),)
    training = Training(epochs=1, batch=32, objectives=(HardLabels(weight=1.0), SoftTargets()), strategies=strategies)
    taught, plain = train(network(), small_context, training), network().eval()
    assert [*taught.state_dict()] == [*plain.state_dict()]
    assert [type(m) for m in taught.modules()] == [type(m) for m in plain.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in taught.modules())
    specs = (TensorSpec(name="x", shape=("batch", 1, 6, 6)),), (TensorSpec(name="y", shape=("batch", 3)),)
    graphs = [lower(Artifact(model, *specs), 21).graph for model in (taught, plain)]
    nodes = [
        [(node.op_type, [v and v.name for v in node.inputs], [v.name for v in node.outputs]) for node in g]
        for g in graphs
    ]
    assert nodes[0] == nodes[1]
    weights = [{name: tuple(v.shape) for name, v in g.initializers.items()} for g in graphs]
    assert weights[0] == weights[1]


SHORT = Training(
    epochs=2, batch=32, checkpoint_seconds=1e-6, objectives=(HardLabels(weight=1.0),), strategies=(Layered(),)
)


def test_a_training_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path):
    whole, again = whole_and_gone_on(network, small_context, SHORT, tmp_path, 7)  # two forwards a step
    assert same_bytes(whole, again)


def test_a_layer_that_is_not_there_is_named(small_context):
    student = network()
    with pytest.raises(ModelError, match="'no.such'"):
        policies([Layered(layers=("2", "no.such"))], student, small_context)
    assert not any(module._forward_hooks for module in student.modules())
