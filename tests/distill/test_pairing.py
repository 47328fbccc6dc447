"""Layers are found, laid out alike, and paired in the order of depth by what they make of the same inputs."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from networks import Encoder, Residual, Tokens, drawn, perceptron
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.alignment import aligned
from kdc.distill.attention_layers import AttentionTap, attention_layers
from kdc.distill.cka import alignment, gram
from kdc.distill.pairing import monotone, pairs
from kdc.distill.projectors import OrthogonalProjector
from kdc.distill.taps import Tap, candidates

INPUTS = (torch.randn((24, 1, 8, 8), generator=torch.Generator().manual_seed(0)),)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al.'s linear CKA in its feature form, in float64."""
    x, y = (f.reshape(len(f), -1) - f.reshape(len(f), -1).mean(0) for f in (x, y))
    across = sum(float(x[:, i] @ y[:, j]) ** 2 for i in range(x.shape[1]) for j in range(y.shape[1]))
    return across / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_cka_is_the_papers_formula():
    x, y = torch.randn((9, 3, 2), generator=seeded(0)), torch.randn((9, 4), generator=seeded(1))
    y[:, 0] += x[:, 0, 0]
    assert alignment(gram(x), gram(y)) == pytest.approx(cka(x.double().numpy(), y.double().numpy()), rel=1e-5)


def test_cka_sees_neither_rotation_nor_scale_nor_offset():
    x = torch.randn((9, 4), generator=seeded(0))
    rotation, _ = torch.linalg.qr(torch.randn((4, 4), generator=seeded(1)))
    assert alignment(gram(x), gram(3 * x @ rotation + 5)) == pytest.approx(1, abs=1e-5)


def test_cka_of_a_constant_layer_is_nothing():
    assert alignment(gram(torch.ones(5, 3)), gram(torch.randn((5, 3), generator=seeded(0)))) == 0


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (2, 2), (2, 6), (4, 6), (5, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_columns_in_order_are_found(rows, columns, seed):
    draw = random.Random(seed)
    scores = [[draw.uniform(-1, 1) for _ in range(columns)] for _ in range(rows)]
    ways = itertools.combinations(range(columns), rows)
    best = max(ways, key=lambda way: sum(scores[i][j] for i, j in enumerate(way)))
    assert monotone(scores) == list(best)


def test_the_last_pair_is_of_the_students_last_layer():
    found = pairs(drawn(Residual(4, 2), 1), drawn(Residual(8, 2), 2), INPUTS, 3)
    assert [pair.student.path for pair in found] == ["stages.0.0", "stages.1.0", "stages"]


@pytest.mark.parametrize("count", [None, 2])
def test_a_model_without_an_inner_layer_has_no_pairs(count):
    linear = nn.Sequential(nn.Linear(8, 3))
    inputs = (torch.randn((4, 8), generator=seeded(0)),)
    deep = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    assert pairs(linear, deep, inputs, count) == pairs(deep, linear, inputs, count) == []


def test_candidates_are_the_ends_of_blocks_not_their_insides():
    assert [layer.path for layer in candidates(Residual(4, 2), INPUTS)] == [
        "stem", "stages.0.0", "stages.0", "stages.1.0", "stages.1", "stages.2.0", "stages",
    ]  # fmt: skip


def test_of_plain_layers_the_last_of_a_run_stands_for_all():
    flat = nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    assert [layer.path for layer in candidates(flat, INPUTS)] == ["2", "4"]


def test_a_transformers_candidates_are_its_blocks_with_channels_last():
    for model, blocks in ((Tokens(8, 3), ["blocks.0", "blocks.1", "blocks.2"]), (Encoder(8, 2), ["encoder.layers.0"])):
        found = {layer.path: layer for layer in candidates(model, INPUTS)}
        assert [path for path in blocks if path in found and found[path].channels == 8] == blocks
        assert all(layer.channels_last == (len(layer.shape) == 2) for layer in found.values())


def test_of_an_mlp_the_hidden_vectors_are_candidates_and_its_answer_is_not():
    assert [layer.shape for layer in candidates(perceptron(16), INPUTS)] in ([(16,)], [(64,), (16,)], [(16,), (16,)])
    assert all(layer.shape != (3,) for layer in candidates(perceptron(16), INPUTS))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_model_is_paired_with_itself_layer_by_layer(count):
    model = drawn(Residual(4, 2), 0)
    found = pairs(model, copy.deepcopy(model), INPUTS, count)
    assert len(found) == count
    assert all(pair.student.path == pair.teacher.path and pair.cka == pytest.approx(1, abs=1e-5) for pair in found)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (Residual(4), Residual(8, 2)),
        (Residual(4), Tokens(16, 4)),
        (Tokens(8, 2), Residual(8, 2)),
        (Tokens(8, 2), Encoder(16, 4)),
        (perceptron(8), Residual(8)),
    ],
    ids=["conv-conv", "conv-tokens", "tokens-conv", "tokens-tokens", "mlp-conv"],
)
def test_unlike_families_are_paired_in_the_order_of_depth_and_laid_out_alike(student, teacher):
    found = pairs(drawn(student, 1), drawn(teacher, 2), INPUTS, 2)
    assert found
    for one, next_one in itertools.pairwise(found):
        assert one.student.depth < next_one.student.depth
        assert one.teacher.depth < next_one.teacher.depth
    for pair in found:
        assert 0 <= pair.cka <= 1
        s, t = pair.aligned(torch.zeros(2, *pair.student.shape), torch.zeros(2, *pair.teacher.shape))
        assert s.shape[2:] == t.shape[2:]
        assert (s.shape[1], t.shape[1]) == (pair.student.channels, pair.teacher.channels)


def test_patches_are_laid_out_where_they_were_cut_from():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    patches = torch.cat([torch.full((1, 1, 1), 99.0), image.flatten(2)], 2)  # the class token in front
    own, other = aligned(patches, image, tokens=(True, False))
    torch.testing.assert_close(own, other)


def test_what_has_more_positions_is_average_pooled():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled, _ = aligned(image, torch.zeros(1, 5, 2, 2))
    torch.testing.assert_close(pooled, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))


def test_a_sequence_is_no_map_though_its_length_is_a_square():
    own, other = aligned(torch.zeros(1, 3, 16), torch.zeros(1, 5, 4))
    assert own.shape[2:] == other.shape[2:] == (4,)


def test_named_layers_are_taken_at_their_word():
    student, teacher = drawn(Residual(4), 1), drawn(Residual(8), 2)
    found = pairs(student, teacher, INPUTS, 1, {"stages.2.0.conv1": "stem", "stem": "stages.2"})
    assert [(pair.student.path, pair.teacher.path) for pair in found] == [
        ("stages.2.0.conv1", "stem"),
        ("stem", "stages.2"),
    ]


def test_a_wrong_name_is_answered_with_near_ones():
    with pytest.raises(ModelError, match=r"'stages.9', which Residual does not have\n.*stages"):
        pairs(Residual(4), Residual(8), INPUTS, 1, {"stages.9": "stem"})


def test_looking_at_a_model_leaves_no_hook_and_no_trace():
    model = Residual(4).train()
    model.stages[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    pairs(model, Residual(8), INPUTS, 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_two_taps_on_two_models_of_one_class_do_not_meet():
    first, second = Residual(4), Residual(4)
    taps = [Tap(model, ["stem"]) for model in (first, second)]
    first(INPUTS[0])
    assert "stem" in taps[0].features
    assert not taps[1].features


@pytest.mark.parametrize("channels", [(3, 7), (7, 3), (5, 5)])
def test_an_orthogonal_projector_stays_orthogonal_while_it_trains(channels):
    projector = OrthogonalProjector(*channels, seeded(0))
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.1, weight_decay=0.5)
    x, y = (torch.randn((32, width), generator=seeded(width)) for width in channels)
    first = projector.weight.detach().clone()
    for _ in range(40):
        optimizer.zero_grad()
        (projector(x) - y).square().mean().backward()
        optimizer.step()
        weight = projector.weight.detach()
        small = weight.T @ weight if channels[1] >= channels[0] else weight @ weight.T
        assert (small - torch.eye(min(channels))).abs().max() < 1e-5
    assert (weight - first).abs().max() > 0.1  # it did train


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("channels", [(4, 4), (4, 8), (8, 4)])
def test_an_orthogonal_projector_finds_the_map_that_there_is(channels, seed):
    projector = OrthogonalProjector(*channels, seeded(seed))
    target, _ = torch.linalg.qr(torch.randn((max(channels), min(channels)), generator=seeded(100 + seed)))
    target = target if channels[1] >= channels[0] else target.T
    if channels[0] == channels[1] and torch.linalg.det(target) * torch.linalg.det(projector.weight.detach()) < 0:
        target[:, 0] *= -1  # reflections cannot be reached by turning
    x = torch.randn((64, channels[0]), generator=seeded(2))
    optimizer = torch.optim.Adam(projector.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (projector(x) - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3


def test_an_orthogonal_projector_may_be_used_twice_in_a_step():
    projector = OrthogonalProjector(3, 5, seeded(0))
    x = torch.randn((4, 3), generator=seeded(1))
    (projector(x).sum() + projector(2 * x).square().sum()).backward()
    assert torch.isfinite(projector.free.grad).all()


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.q_proj(x) @ self.k_proj(x).transpose(1, 2)).softmax(-1) @ self.v_proj(x)


class Together(nn.Module):
    def __init__(self, apart: Apart) -> None:
        super().__init__()
        parts = apart.q_proj, apart.k_proj, apart.v_proj
        self.qkv = nn.Linear(6, 18)
        self.qkv.weight.data = torch.cat([part.weight.data for part in parts])
        self.qkv.bias.data = torch.cat([part.bias.data for part in parts])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


def torchs(together: Together, batch_first: bool) -> nn.Module:
    layer = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    layer.in_proj_weight.data, layer.in_proj_bias.data = together.qkv.weight.data, together.qkv.bias.data
    return layer


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_every_way_to_make_queries_keys_and_values_is_read_alike(batch_first, training):
    apart = drawn(Apart(), 0)
    together = Together(apart)
    model = nn.ModuleDict({"apart": apart, "together": together, "torchs": torchs(together, batch_first)}).train(
        training
    )
    assert attention_layers(model) == ["apart", "together", "torchs"]
    taps = [AttentionTap(model, path) for path in attention_layers(model)]
    x = torch.randn((2, 5, 6), generator=seeded(1))
    apart(x), together(x)
    model["torchs"](*[x if batch_first else x.transpose(0, 1)] * 3)
    for tap in taps[1:]:
        for own, other in zip(tap.vectors, taps[0].vectors, strict=True):
            torch.testing.assert_close(own, other)
    for tap in taps:
        tap.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
