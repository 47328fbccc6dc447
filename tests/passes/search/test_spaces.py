"""Spaces refuse what cannot be, and all that comes from a space is a member of it."""

import random
import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from passes.search.members import Members
from passes.search.spaces import (
    MobileBlock,
    MobileSpace,
    MobileStudent,
    OwnSpace,
    OwnStudent,
    PlainLayer,
    PlainSpace,
    PlainStudent,
    ResidualBlock,
    ResidualSpace,
    ResidualStudent,
    ShrunkSpace,
    ShrunkStudent,
    Space,
    Student,
    describe,
    key,
)

STACKED = {
    "plain": PlainSpace(),
    "plain, few": PlainSpace(depth=(2, 3), channels=(64, 8, 16), kernels=(3, 5), first_strides=(2,), reductions=(1, 2)),
    "plain, forced": PlainSpace(depth=(1, 4), channels=(8,), first_strides=(1,), reductions=(3, 3)),
    "residual": ResidualSpace(),
    "residual, few": ResidualSpace(stem=(4,), channels=(8, 16), blocks=(1, 2), reductions=(0, 1)),
    "mobile": MobileSpace(channels=(8, 16, 24, 32), stem=(8, 16)),
    "mobile, forced": MobileSpace(stem=(8,), channels=(8, 12), expansions=(2,), blocks=(1, 3), first_strides=(2,)),
}


def plain(channels, strides):
    return PlainStudent(layers=tuple(PlainLayer(channels=c, stride=s) for c, s in zip(channels, strides, strict=True)))


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"family": "plain", "depth": [6, 3]}, "depth: the least, 6, is above the most, 3"),
        ({"family": "plain", "depth": []}, "depth: expected the least and the most, found 0 values"),
        ({"family": "plain", "depth": [0, 3]}, "depth: the least, 0, is below 1"),
        ({"family": "plain", "channels": []}, "channels: expected at least one choice, found none"),
        ({"family": "plain", "channels": [8, 0]}, "channels: expected numbers from 1 on, found 0"),
        ({"family": "plain", "kernels": [3, 4]}, "kernels: expected odd sizes, found 4"),
        ({"family": "plain", "first_strides": []}, "first_strides: expected at least one choice"),
        ({"family": "plain", "depth": [1, 2], "reductions": [3, 4]}, "more than the 2 that 2 layers can have"),
        ({"family": "plain", "first_strides": [2], "reductions": [0, 0]}, "leaves none for first_strides"),
        ({"family": "residual", "blocks": [4, 1]}, "blocks: the least, 4, is above the most, 1"),
        ({"family": "residual", "stem": []}, "stem: expected at least one choice, found none"),
        ({"family": "mobile", "expansions": []}, "expansions: expected at least one choice, found none"),
        ({"family": "shrunk", "widths": []}, "widths: expected at least one choice, found none"),
        ({"family": "shrunk", "widths": [0.5, 1.5]}, "widths: expected shares above 0 and up to 1, found 1.5"),
        ({"family": "own", "build": "net.py:build", "choices": {}}, "choices: expected at least one argument"),
        ({"family": "own", "build": "net.py:build", "choices": {"width": []}}, "at least one value of width"),
    ],
)
def test_an_empty_or_contradictory_space_is_refused_with_the_words(space, words):
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(Space).validate_python(space)
    assert words in str(refused.value)


def test_spaces_are_read_without_torch():
    code = "import sys, passes.search.spaces; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hand_made_stacks_are_members_of_the_plain_space():
    assert PlainSpace().holds(plain((24, 48, 48, 96, 96), (2, 1, 2, 1, 2)))
    assert PlainSpace().holds(plain((16, 32, 64), (2, 2, 2)))


def test_a_stack_outside_the_choices_is_no_member():
    for channels, strides in [
        ((48, 24), (2, 1)),  # channels fall
        ((25, 48), (2, 1)),  # no such width
        ((24, 48), (1, 1)),  # never reduced
        ((24,), (2,)),  # too short
        ((24,) * 6, (2,) * 6),  # reduced too often
    ]:
        assert not PlainSpace().holds(plain(channels, strides)), (channels, strides)
    assert not ResidualSpace().holds(plain((16, 32), (2, 1)))


@pytest.mark.parametrize("name", STACKED)
def test_all_that_is_drawn_mutated_grown_and_crossed_is_in_its_space_and_never_below_a_pixel(name, artifact_of, image):
    members = Members(artifact_of(nn.Flatten(), image), (STACKED[name],), 0)
    members.check()
    chance = random.Random(0)
    pool = [members.draw(chance) for _ in range(40)]
    pool += [members.mutate(one, chance) for one in pool] + [members.grow(one, chance) for one in pool]
    pool += [members.cross(chance.choice(pool), chance.choice(pool), chance) for _ in range(40)]
    for student in [*pool, *members.smallest()]:
        assert STACKED[name].holds(student), describe(student)
        layers = getattr(student, "layers", None) or (student.stem, *student.blocks)
        assert 2 ** sum(layer.stride == 2 for layer in layers) <= min(image[1:])


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_small_and_large_members_are_both_drawn(name, artifact_of):
    members = Members(artifact_of(nn.Flatten()), (STACKED[name],), 0)
    chance = random.Random(1)
    widest = sorted(
        (getattr(s, "layers", ()) or s.blocks)[-1].channels for s in (members.draw(chance) for _ in range(200))
    )
    choices = sorted(STACKED[name].channels)
    assert widest[20] <= choices[len(choices) // 4]
    assert widest[-21] >= choices[-1 - len(choices) // 4]


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_a_mutation_differs_from_its_parent(name, artifact_of):
    members = Members(artifact_of(nn.Flatten()), (STACKED[name],), 0)
    chance = random.Random(2)
    parents = [members.draw(chance) for _ in range(30)]
    assert all(members.mutate(parent, chance) != parent for parent in parents)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_what_grows_does_no_less_work(name, artifact_of):
    members, chance = Members(artifact_of(nn.Flatten()), (STACKED[name],), 0), random.Random(0)
    for _ in range(20):
        one = members.draw(chance)
        before, after = (members.size(members.build(student))[1] for student in (one, members.grow(one, chance)))
        assert after >= before


def test_a_space_of_one_member_mutates_it_into_itself(artifact_of):
    space = PlainSpace(depth=(1, 1), channels=(8,), first_strides=(2,), reductions=(1, 1))
    members = Members(artifact_of(nn.Flatten()), (space,), 0)
    only = members.draw(random.Random(0))
    assert members.mutate(only, random.Random(1)) == members.cross(only, only, random.Random(1)) == only


def test_what_stands_outside_a_space_mutates_into_it(artifact_of):
    members = Members(artifact_of(nn.Flatten()), (STACKED["plain, few"],), 0)
    outside = plain((250, 25, 1, 7, 9), (1, 2, 2, 2, 2))
    assert STACKED["plain, few"].holds(members.mutate(outside, random.Random(0)))


def test_structures_of_two_families_cross_into_a_mutation_of_one(artifact_of):
    spaces = (PlainSpace(), MobileSpace())
    members = Members(artifact_of(nn.Flatten()), spaces, 0)
    chance = random.Random(3)
    a, b = (
        plain((24, 48), (2, 1)),
        MobileStudent(stem=PlainLayer(channels=8, stride=2), blocks=(MobileBlock(channels=8),)),
    )
    children = [members.cross(a, b, chance) for _ in range(20)]
    assert {child.family for child in children} == {"plain", "mobile"}
    assert all(any(space.holds(child) for space in spaces) for child in children)


def test_a_structure_of_a_family_without_a_space_is_refused(artifact_of):
    members = Members(artifact_of(nn.Flatten()), (MobileSpace(),), 0)
    with pytest.raises(ModelError, match="a plain structure belongs to none of the spaces mobile"):
        members.mutate(plain((24,), (2,)), random.Random(0))


def test_the_same_chance_draws_the_same_members(artifact_of):
    members = Members(artifact_of(nn.Flatten()), tuple(STACKED.values()), 0)
    first, again = random.Random(5), random.Random(5)
    assert [members.draw(first) for _ in range(20)] == [members.draw(again) for _ in range(20)]


@pytest.mark.parametrize("family", ["plain", "residual", "mobile"])
def test_a_model_of_tokens_is_refused_with_the_familys_name(family, artifact_of):
    space = TypeAdapter(Space).validate_python({"family": family})
    tokens = artifact_of(nn.Flatten(), (128,), "int64")
    with pytest.raises(
        ModelError, match=rf"{family}: the model takes image int64 \[batch, 128\].*expected one floating"
    ):
        Members(tokens, (ShrunkSpace(), space)[1:], 0).check()


def test_two_inputs_are_refused(artifact_of):
    one = artifact_of(nn.Flatten())
    two = type(one)(one.model, (*one.inputs, TensorSpec(name="other", shape=("batch", 4))), one.outputs)
    with pytest.raises(ModelError, match="other float32"):
        Members(two, (PlainSpace(),), 0).check()


def test_more_reductions_than_the_image_allows_are_refused_and_only_then(artifact_of):
    small = artifact_of(nn.Flatten(), (1, 8, 8))
    Members(small, (PlainSpace(reductions=(3, 5)),), 0).check()
    with pytest.raises(ModelError, match="plain: at least 4 layers have stride 2, and an image of 8x8 pixels"):
        Members(small, (PlainSpace(reductions=(4, 5)),), 0).check()
    with pytest.raises(ModelError, match="can be halved 0 times"):
        Members(artifact_of(nn.Flatten(), (1, 1, 8)), (PlainSpace(first_strides=(2,)),), 0).check()


STUDENTS = [
    plain((24, 48, 48, 96), (2, 1, 2, 1)),
    plain((24, 48, 48, 96), (2, 1, 1, 2)),
    PlainStudent(layers=(PlainLayer(channels=24, stride=2, kernel=5),)),
    ResidualStudent(
        stem=PlainLayer(channels=16), blocks=(ResidualBlock(channels=32, stride=2), ResidualBlock(channels=32))
    ),
    MobileStudent(
        stem=PlainLayer(channels=16, stride=2),
        blocks=(MobileBlock(channels=24, expansion=4), MobileBlock(channels=32, stride=2, kernel=5)),
    ),
    ShrunkStudent(),
    ShrunkStudent(without=("blocks.1", "blocks.3"), kept={"stem.conv": (0, 2, 3)}),
    ShrunkStudent(without=("blocks.1", "blocks.3"), kept={"stem.conv": (0, 2)}),
    OwnStudent(build="net.py:build", arguments={"width": 16, "wide": True}),
    OwnStudent(build="net.py:build", arguments={"width": 16, "wide": 1}),
]


def test_descriptions_are_short_and_tell_structures_apart():
    lines = [describe(student) for student in STUDENTS]
    assert lines[:5] == [
        "plain 24/2 48 48/2 96",
        "plain 24/2 48 48 96/2",
        "plain 24k5/2",
        "residual 16 | 32/2 32",
        "mobile 16/2 | 24x4 32x1k5/2",
    ]
    assert lines[6] == "shrunk to 3 channels without blocks.1, blocks.3"
    assert len(set(lines)) == len(lines)


def test_keys_are_hexadecimal_distinct_and_the_same_after_json():
    keys = [key(student) for student in STUDENTS]
    assert len(set(keys)) == len(keys)
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in keys)
    adapter = TypeAdapter(Student)
    again = [adapter.validate_json(adapter.dump_json(student)) for student in STUDENTS]
    assert [key(student) for student in again] == keys


def test_the_key_does_not_depend_on_the_order_of_names():
    one = OwnStudent(build="a:b", arguments={"x": 1, "y": 2})
    assert key(one) == key(OwnStudent(build="a:b", arguments={"y": 2, "x": 1}))


OWN = """
import torch
from torch import nn


def build(width, deep, kind="net"):
    if kind == "number":
        return 3
    if kind == "broken":
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 7))
    if kind == "other":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    if kind == "raises":
        raise ValueError("no such width")
    inner = [nn.Linear(width, width), nn.ReLU()] if deep else []
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *inner, nn.Linear(width, 7))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return OwnSpace(build="net.py:build", choices={"width": (32, 4, 16), "deep": (True, False)})


def test_members_of_the_users_own_space_are_in_it_and_its_smallest_is_found(own, artifact_of):
    members = Members(artifact_of(nn.Flatten()), (own,), 0)
    members.check()
    chance = random.Random(0)
    pool = [members.draw(chance) for _ in range(10)]
    pool += [members.mutate(one, chance) for one in pool] + [members.cross(pool[0], pool[1], chance)]
    assert all(own.holds(student) for student in pool)
    assert members.smallest() == [OwnStudent(build="net.py:build", arguments={"width": 4, "deep": False})]
    with torch.no_grad():
        assert members.build(pool[0])(torch.zeros(3, 1, 8, 8)).shape == (3, 7)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("number", "returned a int; expected a torch.nn.Module"),
        ("broken", "the network fails on image float32"),
        ("other", r"shapes \[\(2, 3\)\] for a batch of 2; expected \[\(2, 7\)\]"),
        ("raises", "net.py:14: ValueError: no such width"),
    ],
)
def test_an_own_callable_that_gives_no_fitting_network_is_named_with_its_arguments(own, artifact_of, kind, words):
    student = OwnStudent(build=own.build, arguments={"width": 4, "deep": False, "kind": kind})
    with pytest.raises(ModelError, match=words):
        Members(artifact_of(nn.Flatten()), (own,), 0).build(student)


def test_a_choice_that_cannot_be_built_is_not_the_smallest(own, artifact_of):
    space = OwnSpace(build=own.build, choices={"width": (4,), "deep": (False,), "kind": ("raises", "net")})
    (smallest,) = Members(artifact_of(nn.Flatten()), (space,), 0).smallest()
    assert smallest.arguments["kind"] == "net"


def test_an_own_callable_that_does_not_exist_is_refused_at_once(own, artifact_of):
    with pytest.raises(ModelError, match="'absent'"):
        Members(artifact_of(nn.Flatten()), (own.model_copy(update={"build": "net.py:absent"}),), 0).check()
