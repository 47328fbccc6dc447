"""DisWOT is zero for the teacher itself and less for any other, and looking changes nothing."""

import copy

import pytest
import torch
from torch import nn

from kdc.core.errors import ModelError
from passes.search.construct import build
from passes.search.ranking import MOST_CLASSES, Reference, diswot
from passes.search.spaces import MobileBlock, MobileStudent, PlainLayer, PlainStudent, ResidualBlock, ResidualStudent

STUDENTS = {
    "plain": PlainStudent(layers=(PlainLayer(channels=8, stride=2), PlainLayer(channels=16))),
    "residual": ResidualStudent(stem=PlainLayer(channels=8), blocks=(ResidualBlock(channels=16, stride=2),)),
    "mobile": MobileStudent(
        stem=PlainLayer(channels=8, stride=2), blocks=(MobileBlock(channels=8), MobileBlock(channels=16, expansion=3))
    ),
    "to one pixel": PlainStudent(layers=tuple(PlainLayer(channels=8, stride=2) for _ in range(3))),
}


@pytest.fixture(scope="module")
def reference(teacher, batch):
    return Reference.of(teacher.model, batch[:1], batch[1])


@pytest.fixture(params=STUDENTS)
def student(request, teacher):
    return build(STUDENTS[request.param], teacher, 0)


def state(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [(m.training, getattr(m, "track_running_stats", None), len(m._forward_hooks)) for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def test_a_copy_of_the_teacher_is_the_most_alike(teacher, reference):
    assert diswot(copy.deepcopy(teacher.model), reference) == 0


def test_any_other_model_is_less_alike_and_gives_the_same_number_again(student, reference):
    score = diswot(student, reference)
    assert -100 < score < -0.1
    assert diswot(student, reference) == score


@pytest.mark.parametrize("training", [False, True])
def test_looking_leaves_mode_buffers_and_gradients_as_they_were(student, reference, training, batch):
    student.train(training)
    student.head.eval()
    (student(batch[0]).sum()).backward()
    before = state(student)
    generator = torch.get_rng_state()
    diswot(student, reference)
    after = state(student)
    assert before[1] == after[1]
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


def test_the_mode_of_the_student_does_not_count(student, reference):
    assert diswot(student.train(), reference) == diswot(student.eval(), reference)


def test_frozen_weights_are_compared_like_free_ones(student, reference):
    score = diswot(student, reference)
    assert diswot(student.requires_grad_(False), reference) == score


def test_the_scale_of_the_students_features_and_logits_does_not_count(teacher, reference):
    model = build(STUDENTS["plain"], teacher, 0)
    score = diswot(model, reference)
    with torch.no_grad():
        model.layers[-1].norm.weight.mul_(8)
        model.layers[-1].norm.bias.mul_(8)
        model.head.weight.mul_(4)
    assert diswot(model, reference) == pytest.approx(score, abs=1e-5)


def test_the_relations_are_the_cosines_of_the_last_map_and_the_semantics_those_of_grad_cam(teacher, batch, reference):
    """Against the formulas, for a classifier on pooled features: there dlogit/dA[k] is weight[c, k] / places."""
    model = copy.deepcopy(teacher.model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        last = model.blocks(model.stem(batch[0]))
    flat = last.flatten(1).double()
    cosine = nn.functional.cosine_similarity(flat[:, None], flat[None], dim=2)
    assert torch.allclose(reference.relations.double(), cosine, atol=1e-5)
    weight = model.head.weight.detach().double()[list(reference.classes)]
    maps = torch.einsum("ck,bkhw->cbhw", weight, last.double()).relu().flatten(1)
    cosine = nn.functional.cosine_similarity(maps[:, None], maps[None], dim=2)
    assert torch.allclose(reference.semantics.double(), cosine, atol=1e-5)


def test_only_the_most_frequent_classes_are_compared():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 30)).eval()
    labels = torch.tensor([*range(30), 29, 28, 27])
    classes = Reference.of(model, (torch.randn(33, 1, 8, 8),), labels).classes
    assert classes == (*range(MOST_CLASSES - 3), 27, 28, 29)


def test_models_without_maps_are_compared_by_the_last_feature_before_the_logits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, labels = torch.randn(12, 6), torch.arange(12) % 3
    reference = Reference.of(model, (inputs,), labels)
    feature = nn.functional.normalize(model[:2](inputs).detach(), dim=1)
    assert torch.allclose(reference.relations, feature @ feature.T, atol=1e-6)
    assert diswot(copy.deepcopy(model), reference) == 0
    assert diswot(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), reference) < 0


def test_a_model_that_writes_into_its_last_map_is_compared_all_the_same():
    class InPlace(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.conv, self.head, self.inplace = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), inplace

        def forward(self, x):
            return self.head(nn.functional.relu(self.conv(x), inplace=self.inplace).mean((2, 3)))

    torch.manual_seed(0)
    model, inputs, labels = InPlace(False), torch.randn(12, 1, 8, 8), torch.arange(12) % 3
    other = InPlace(True)
    other.load_state_dict(model.state_dict())
    assert diswot(other, Reference.of(model, (inputs,), labels)) == 0


def test_a_model_without_logits_or_inner_features_is_refused():
    inputs, labels = torch.randn(12, 6), torch.arange(12) % 3
    with pytest.raises(ModelError, match="no module that gives one"):
        Reference.of(nn.Linear(6, 3), (inputs,), labels)
    with pytest.raises(ModelError, match="labels go up to 2"):
        Reference.of(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), (inputs,), labels)
