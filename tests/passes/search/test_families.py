"""Every member is a network that takes the model's input, gives its logits, can be traced, and is what it was drawn as."""

import random

import pytest
import torch
from torch import nn

from kdc.core.trace import trace
from passes.search.construct import build
from passes.search.families import InvertedResidual, Separable
from passes.search.members import Members
from passes.search.spaces import (
    MobileBlock,
    MobileSpace,
    MobileStudent,
    PlainLayer,
    PlainSpace,
    PlainStudent,
    ResidualBlock,
    ResidualSpace,
    ResidualStudent,
)

SMALL = (8, 12, 16)
SPACES = {
    "plain": PlainSpace(channels=SMALL, kernels=(3, 5)),
    "residual": ResidualSpace(channels=SMALL, stem=SMALL, blocks=(1, 4)),
    "mobile": MobileSpace(channels=SMALL, stem=SMALL, blocks=(1, 4)),
}
HAND_MADE = PlainStudent(
    layers=tuple(PlainLayer(channels=c, stride=s) for c, s in zip((24, 48, 48, 96, 96), (2, 1, 2, 1, 2), strict=True))
)


@pytest.mark.parametrize("family", SPACES)
def test_every_member_builds_runs_and_gives_logits(family, artifact_of, image):
    members = Members(artifact_of(nn.Flatten(), image), (SPACES[family],), 0)
    chance = random.Random(0)
    drawn = [members.draw(chance) for _ in range(6)]
    for student in [*drawn, *(members.mutate(one, chance) for one in drawn), members.cross(*drawn[:2], chance)]:
        model = members.build(student)
        assert not any(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        with torch.no_grad():
            assert model(torch.randn(3, *image)).shape == (3, 7)


@pytest.mark.parametrize("family", SPACES)
def test_every_family_is_traced_with_a_free_batch(family, artifact_of, image):
    artifact = artifact_of(nn.Flatten(), image)
    members = Members(artifact, (SPACES[family],), 0)
    program = trace(members.build(members.draw(random.Random(1))), artifact.inputs).module()
    for batch in (1, 5):
        assert program(torch.zeros(batch, *image)).shape == (batch, 7)


@pytest.mark.parametrize("family", SPACES)
def test_building_twice_gives_equal_weights_and_another_seed_or_structure_others(family, artifact_of):
    artifact = artifact_of(nn.Flatten())
    members = Members(artifact, (SPACES[family],), 3)
    student = members.draw(random.Random(0))
    first, again = members.build(student).state_dict(), build(student, artifact, 3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build(student, artifact, 4).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("family", SPACES)
def test_building_leaves_the_global_generator_as_it_was(family, artifact_of):
    members = Members(artifact_of(nn.Flatten()), (SPACES[family],), 0)
    torch.manual_seed(12)
    before = torch.get_rng_state()
    members.build(members.draw(random.Random(0)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", SPACES)
def test_the_smallest_member_has_no_more_macs_than_thirty_drawn_ones(family, artifact_of, image):
    members = Members(artifact_of(nn.Flatten(), image), (SPACES[family],), 0)
    chance = random.Random(7)
    (smallest,) = members.smallest()
    least = members.size(members.build(smallest))[1]
    assert all(members.size(members.build(members.draw(chance)))[1] >= least for _ in range(30))


def test_the_size_of_a_plain_stack_is_that_of_the_formula(artifact_of):
    height, width, classes = 32, 20, 7
    members = Members(artifact_of(nn.Flatten(), (3, height, width)), (PlainSpace(),), 0)
    parameters = macs = 0
    channels = 3
    for layer in HAND_MADE.layers:
        height, width = -(-height // layer.stride), -(-width // layer.stride)
        weights = 9 * channels * layer.channels
        parameters += weights + 2 * layer.channels  # a batch norm has a scale and a shift
        macs += weights * height * width
        channels = layer.channels
    parameters, macs = parameters + (channels + 1) * classes, macs + channels * classes
    model = members.build(HAND_MADE).train()
    assert members.size(model) == (parameters, macs)
    assert model.training


def test_the_size_of_a_mobile_block_counts_a_depthwise_filter_once_a_channel(artifact_of):
    student = MobileStudent(
        stem=PlainLayer(channels=4), blocks=(MobileBlock(channels=8, expansion=3, kernel=5, stride=2),)
    )
    members = Members(artifact_of(nn.Flatten()), (MobileSpace(),), 0)
    stem, expand, depthwise, project, head = 64 * 9 * 4, 64 * 4 * 12, 16 * 25 * 12, 16 * 12 * 8, 8 * 7
    assert members.size(members.build(student))[1] == stem + expand + depthwise + project + head


def test_a_residual_block_adds_its_input_and_projects_it_only_where_the_shape_changes(artifact_of):
    student = ResidualStudent(
        stem=PlainLayer(channels=8), blocks=(ResidualBlock(channels=8), ResidualBlock(channels=16, stride=2))
    )
    model = build(student, artifact_of(nn.Flatten()), 0)
    same, strided = model.blocks
    assert isinstance(same.shortcut, nn.Identity)
    assert strided.shortcut.conv.kernel_size == (1, 1)
    x = torch.randn(2, 8, 8, 8)
    nn.init.zeros_(same.second.norm.weight)
    assert torch.equal(same(x), x.relu())


def test_a_mobile_block_adds_its_input_where_the_shape_stays_and_it_expands(artifact_of):
    student = MobileStudent(
        stem=PlainLayer(channels=8),
        blocks=(
            MobileBlock(channels=8, expansion=2),
            MobileBlock(channels=8, expansion=1),
            MobileBlock(channels=16, expansion=2),
        ),
    )
    adds, separable, widens = build(student, artifact_of(nn.Flatten()), 0).blocks
    assert isinstance(adds, InvertedResidual)
    assert isinstance(separable, Separable)
    assert not widens.adds
    x = torch.randn(2, 8, 8, 8)
    nn.init.zeros_(adds.project.norm.weight)
    nn.init.zeros_(separable.pointwise.norm.weight)
    assert torch.equal(adds(x), x)
    assert torch.equal(separable(x), torch.zeros_like(x))


def test_convolutions_start_with_the_spread_that_keeps_gradients_also_depthwise_ones(artifact_of):
    student = MobileStudent(stem=PlainLayer(channels=64), blocks=(MobileBlock(channels=64, expansion=6),))
    model = build(student, artifact_of(nn.Flatten()), 0)
    depthwise = model.blocks[0].depthwise.conv.weight
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert model.stem.conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
