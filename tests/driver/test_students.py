"""The leaderboard's models: fresh weights are fresh, and controls are what they say."""

import copy
import os

import numpy as np
import pytest
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.data import Split, Splits
from kdc.core.spec import TensorSpec
from kdc.driver.students import RIDGE, Structure, built, cut, fresh, random_teacher, truncated_teacher
from kdc.driver.trial import Bench
from kdc.tasks.classification import Classification
from targets.device import load_device


class Tokens(nn.Module):
    """A convolution, a token of its own, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.own = nn.Parameter(torch.arange(24.0))
        self.head = nn.Linear(24, 3)

    def forward(self, image):
        return self.head(self.second(self.first(image)).mean((2, 3)) + self.own)


@pytest.fixture
def teacher():
    generator = torch.Generator().manual_seed(0)
    model = fresh(Tokens(), 5).eval().requires_grad_(False)
    model.first[1].running_mean += torch.randn(16, generator=generator)
    return model


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)

    def split(n):
        labels = torch.arange(n) % 3
        images = torch.randn((n, 1, 6, 6), generator=generator)
        images[:, 0, 0] += 2.0 * labels[:, None]
        return Split((images,), labels)

    return Splits(split(120), split(60), split(60), split(60), "fingerprint")


def weights(model):
    return torch.cat([tensor.flatten() for tensor in model.parameters()])


def test_fresh_weights_are_the_seeds_and_nothing_of_the_teachers(teacher):
    before = torch.random.get_rng_state()
    first, same, other = (fresh(copy.deepcopy(teacher), seed) for seed in (1, 1, 2))
    assert torch.equal(weights(first), weights(same))
    assert not torch.equal(weights(first), weights(other))
    for name, tensor in first.named_parameters():
        if name.endswith("0.weight"):
            assert (
                abs(torch.corrcoef(torch.stack([tensor.flatten(), teacher.get_parameter(name).flatten()]))[0, 1]) < 0.4
            )
    assert torch.equal(first.first[1].running_mean, torch.zeros(16))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_parameter_without_a_rule_keeps_its_values_and_loses_their_places(teacher):
    made = fresh(copy.deepcopy(teacher), 1).own
    assert not torch.equal(made, teacher.own)
    assert torch.equal(made.sort().values, teacher.own.sort().values)


def test_a_random_teacher_has_the_structure_and_not_the_knowledge(teacher, data):
    made = random_teacher(teacher, data, seed=3)
    assert [*made.state_dict()] == [*teacher.state_dict()]
    assert not torch.equal(made.head.weight, teacher.head.weight)
    assert not made.training
    images = data.calibration.inputs[0]
    norm, seen = made.first[1], made.first[0](images)
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert norm.momentum == teacher.first[1].momentum


def test_a_truncated_teacher_is_the_first_half_and_a_head_by_least_squares(teacher, data):
    made = truncated_teacher(teacher, data, Classification())
    assert made.layer.path == "first"
    images, labels = data.train.inputs[0], data.train.labels.numpy()
    pooled = teacher.first(images).mean((2, 3)).double().numpy()
    x = np.concatenate([pooled, np.ones((len(pooled), 1))], 1)
    y = np.eye(3)[labels] - 1 / 3
    gram = x.T @ x
    expected = np.linalg.solve(gram + RIDGE * np.diag(gram).mean() * np.eye(17), x.T @ y)
    scale = made.weight.double().numpy() / expected
    assert scale == pytest.approx(np.full_like(scale, scale[0, 0]), rel=1e-3)
    outputs = made(data.test.inputs[0])
    assert outputs.shape == (60, 3)
    assert (outputs.argmax(1) == data.test.labels).float().mean() > 0.45


def test_the_truncated_teachers_scale_has_the_least_loss_on_the_calibration_split(teacher, data):
    made = truncated_teacher(teacher, data, Classification())
    outputs = made(*data.calibration.inputs)
    losses = [nn.functional.cross_entropy(scale * outputs, data.calibration.labels) for scale in (0.8, 1.0, 1.25)]
    assert losses[1] == min(losses)


def bench_of(teacher, data, folder):
    artifact = Artifact(
        teacher,
        (TensorSpec(name="image", shape=("batch", 1, 6, 6), dtype="float32"),),
        (TensorSpec(name="logits", shape=("batch", 3), dtype="float32"),),
    )
    return Bench(artifact, data, Classification(), load_device("cpu-ort"), folder)


def test_all_methods_of_a_seed_begin_with_the_same_weights(teacher, data, tmp_path):
    bench = bench_of(teacher, data, tmp_path)
    structure = Structure(kept=(("first.0", tuple(range(8))),))
    first, again = (bench.student(structure, "fresh", 0) for _ in range(2))
    assert first.first[0].out_channels == 8
    assert torch.equal(weights(first), weights(again))
    assert first is not again


def test_a_pruned_start_has_the_teachers_weights(teacher, data, tmp_path):
    structure = Structure(kept=(("first.0", tuple(range(4, 12))),))
    made = bench_of(teacher, data, tmp_path).student(structure, "pruned", 0)
    assert torch.equal(made.first[0].weight, teacher.first[0].weight[4:12])
    assert torch.equal(cut(bench_of(teacher, data, tmp_path).teacher, structure).head.weight, teacher.head.weight)


def test_draws_go_by_the_seed_and_not_by_the_method(teacher, data, tmp_path):
    bench = bench_of(teacher, data, tmp_path)
    contexts = [bench.context(seed, tmp_path / str(i), tmp_path, teacher) for i, seed in enumerate((0, 0, 1))]
    orders = [torch.randperm(50, generator=context.generator("order.0")) for context in contexts]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_a_student_of_the_users_own_draws_its_weights_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("from torch import nn\ndef small():\n    return nn.Linear(4, 3)\n")
    first, same, other = (built(f"{os.fspath(tmp_path)}/net.py:small", seed, ()) for seed in (0, 0, 1))
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)
