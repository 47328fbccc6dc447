"""A shrunk model is the incoming one without some blocks and channels, and nothing else."""

import copy
import random

import pytest
import torch
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.core.trace import trace
from passes.search.construct import build
from passes.search.members import Members
from passes.search.shrink import Shrinker, count, parts, shrink
from passes.search.spaces import ShrunkSpace, ShrunkStudent


@pytest.fixture(scope="module")
def shrinker(teacher):
    return Shrinker(teacher)


@pytest.fixture(scope="module")
def members(teacher):
    return Members(teacher, (ShrunkSpace(widths=(0.25, 0.5, 1.0)),), 0)


def run(model, images):
    with torch.no_grad():
        return model.eval()(images)


def test_the_parts_of_a_residual_network_are_its_blocks_that_keep_the_shape(shrinker):
    assert [path for path in shrinker.parts if path.count(".") == 1] == ["blocks.0", "blocks.2", "blocks.3"]
    assert not any(path.startswith(("blocks.0.", "blocks.2.", "blocks.3.")) for path in shrinker.parts)


def test_finding_parts_leaves_the_model_as_it_was(teacher):
    model = copy.deepcopy(teacher.model).train()
    model.blocks[0].eval()
    modes, weights = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    parts(model, teacher.inputs)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_stack_of_blocks_and_a_trunk_are_opened_and_a_norm_is_no_part():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x, mask=None):
            return x + self.second(self.first(self.norm(x)).relu())

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block(), Block()])
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x, mask=None)
            return self.norm(x)

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.encoder, self.head = nn.Embedding(10, 8), Encoder(), nn.Linear(8, 7)

        def forward(self, tokens):
            return self.head(self.encoder(self.embedding(tokens)).mean(1))

    tokens = (TensorSpec(name="tokens", shape=("batch", 6), dtype="int64"),)
    assert parts(Classifier(), tokens) == ("encoder.layers.0", "encoder.layers.1", "encoder.layers.2")


def test_a_module_that_runs_twice_or_feeds_a_fixed_use_is_no_part():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 7)

        def forward(self, x):
            return self.head(self.inner(self.inner(x).relu()))

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 7)

        def forward(self, x):
            return self.head(self.inner(x) + self.inner.bias)

    spec = (TensorSpec(name="x", shape=("batch", 6)),)
    assert parts(Twice(), spec) == parts(Uses(), spec) == ()


def test_leaving_out_a_block_is_the_model_with_the_identity_there(teacher, batch):
    expected = copy.deepcopy(teacher.model)
    expected.blocks[2] = nn.Identity()
    found = shrink(teacher, ShrunkStudent(without=("blocks.2",)))
    assert torch.equal(run(found, batch[0]), run(expected, batch[0]))
    assert torch.equal(run(teacher.model, batch[0]), run(copy.deepcopy(teacher.model), batch[0]))


def test_width_one_everywhere_computes_what_the_model_computes(teacher, shrinker, batch):
    kept = shrinker.kept_for({group.name: 1.0 for group in shrinker.groups()})
    assert kept == {}
    student = ShrunkStudent(kept=kept)
    assert torch.equal(run(build(student, teacher, 0), batch[0]), run(teacher.model, batch[0]))


def test_the_channels_that_stay_are_those_of_largest_magnitude(teacher, shrinker):
    """Against the sum of squares of the filters that make a channel and the columns that read it, norms folded in."""
    block = teacher.model.blocks[0]

    def folded(layer):
        gain = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
        return (layer.conv.weight * gain[:, None, None, None]).detach().square()

    scores = folded(block.first).sum((1, 2, 3)) + folded(block.second).sum((0, 2, 3))
    kept = shrinker.kept_for({"blocks.0.first.conv": 0.5})
    assert kept == {"blocks.0.first.conv": tuple(sorted(scores.topk(4).indices.tolist()))}


def test_a_share_is_rounded_up_to_the_alignment_and_never_to_nothing(shrinker):
    (group,) = (group for group in shrinker.groups() if group.name == "blocks.2.first.conv")
    assert group.size == 16
    assert [count(group, share) for share in (0.01, 0.25, 0.3, 1.0)] == [1, 4, 5, 16]
    assert [count(group, share, 4) for share in (0.01, 0.25, 0.3, 1.0)] == [4, 4, 8, 16]
    assert len(shrinker.kept_for({group.name: 0.3}, 4)[group.name]) == 8


def test_channels_and_blocks_go_together_and_what_is_left_can_be_traced(teacher, shrinker):
    without = ("blocks.0", "blocks.3")
    kept = shrinker.kept_for({group.name: 0.5 for group in shrinker.groups(without)}, None, without)
    student = ShrunkStudent(without=without, kept=kept)
    model = shrinker.build(student)
    assert model.stem.conv.out_channels == 4
    assert model.head.in_features == 8
    assert trace(model, teacher.inputs).module()(torch.zeros(5, 1, 8, 8)).shape == (5, 7)
    again = shrink(teacher, student)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert sum(p.numel() for p in teacher.model.parameters()) > 3 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("blocks.9",), "'blocks.9', which the model does not have"),
        (("",), "'', which the model does not have"),
        (("blocks.1",), "'blocks.1'; expected a module with weights that runs once"),
        (("stem.norm",), "'stem.norm'; expected a module with weights"),
        (("blocks.0", "blocks.0.second"), "'blocks.0.second' twice"),
        (("blocks.0", "blocks.0"), "'blocks.0' twice"),
    ],
)
def test_a_wrong_path_is_an_error_that_names_the_right_ones(teacher, without, words):
    with pytest.raises(ModelError) as refused:
        build(ShrunkStudent(without=without), teacher, 0)
    assert words in str(refused.value)
    assert "blocks.0" in str(refused.value).partition("→")[2] or "outer module" in str(refused.value)


def test_channels_that_do_not_exist_are_an_error(teacher):
    with pytest.raises(ModelError, match=r"channels \[99\] do not exist"):
        build(ShrunkStudent(kept={"stem.conv": (0, 99)}), teacher, 0)


def test_members_keep_an_allowed_share_of_every_group_and_run(members, batch):
    space = members.spaces[0]
    members.check()
    chance = random.Random(0)
    pool = [members.draw(chance) for _ in range(6)]
    pool += [members.mutate(one, chance) for one in pool]
    pool += [members.cross(pool[0], pool[-1], chance), members.cross(pool[1], pool[2], chance)]
    for student in pool:
        assert space.holds(student)
        assert list(student.without) == [part for part in members._shrinker.parts if part in student.without]
        counts = members._shrinker.counts(student)
        for group in members._shrinker.groups(student.without):
            assert counts[group.name] in {count(group, width) for width in space.widths}
        assert run(members.build(student), batch[0]).shape == (16, 7)


def test_the_smallest_shrunk_member_has_no_more_macs_than_thirty_drawn_ones(members):
    (smallest,) = members.smallest()
    chance = random.Random(1)
    least = members.size(members.build(smallest))[1]
    assert all(members.size(members.build(members.draw(chance)))[1] >= least for _ in range(30))


def test_without_depth_no_block_is_left_out(teacher):
    members = Members(teacher, (ShrunkSpace(depth=False, widths=(0.5, 1.0)),), 0)
    chance = random.Random(0)
    pool = [members.draw(chance) for _ in range(5)]
    pool += [members.mutate(one, chance) for one in pool] + [members.grow(one, chance) for one in pool]
    pool += members.smallest()
    assert not any(student.without for student in pool)


def test_a_model_of_which_nothing_can_go_is_refused(artifact_of):
    single = artifact_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))
    with pytest.raises(ModelError, match="shrunk: no channels and no block"):
        Members(single, (ShrunkSpace(),), 0).check()


def test_a_shrunk_student_can_be_trained_and_shares_nothing_with_the_model(teacher):
    weights = copy.deepcopy(teacher.model.state_dict())
    model = build(ShrunkStudent(), teacher, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(weights[name], tensor) for name, tensor in teacher.model.state_dict().items())
