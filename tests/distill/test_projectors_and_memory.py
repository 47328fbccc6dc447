"""Modules between two models: attention from the teacher's positions, a critic of bounded slope, a ring of embeddings."""

import numpy as np
import pytest
import torch
from torch import nn

from kdc.distill.feature_settings import Contrastive
from kdc.distill.memory import Remembering
from kdc.distill.objectives.contrastive import contrastive
from kdc.distill.objectives.wasserstein import critic_gap
from kdc.distill.projectors import CrossAttentionProjector, LipschitzCritic


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_critics_gap_is_the_difference_of_the_means_over_pairs_of_two_and_of_one():
    scores = drawn(1, 5, 5)
    values = critic_gap(scores)
    table = scores.numpy()
    expected = [sum(table[i, j] for j in range(5) if j != i) / 4 - table[i, i] for i in range(5)]
    np.testing.assert_allclose(values.numpy(), expected)
    assert torch.autograd.gradcheck(critic_gap, scores.requires_grad_())
    assert critic_gap(torch.full((3, 3), 7.0)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_critics_gap_of_large_half_floats_is_finite(dtype):
    assert torch.isfinite(critic_gap(torch.full((4, 4), 6e4, dtype=dtype))).all()


def test_a_critic_never_changes_faster_than_the_features_whatever_its_weights():
    critic = LipschitzCritic(6, generator()).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(50)
    unit = [nn.functional.normalize(drawn(seed, 40, 6), dim=1) for seed in range(4)]
    one, other = (torch.diagonal(critic(s, t)) for s, t in (unit[:2], unit[2:]))
    apart = torch.cat([unit[0] - unit[2], unit[1] - unit[3]], 1).norm(dim=1)
    assert ((one - other).abs() <= apart + 1e-9).all()
    assert (one - other).abs().max() > 0.01


def test_a_critic_learns_to_tell_pairs_of_one_example_from_pairs_of_two():
    critic = LipschitzCritic(4, generator())
    features = drawn(3, 32, 4, dtype=torch.float32)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    gaps = []
    for _ in range(60):
        gap = critic_gap(critic(features, features)).mean()
        gaps.append(float(gap.detach()))
        optimizer.zero_grad()
        gap.backward()
        optimizer.step()
    assert gaps[-1] < gaps[0] - 0.05


def test_attention_gives_the_teachers_channels_and_positions_and_each_query_sees_every_position():
    projector = CrossAttentionProjector(3, 8, (4, 4), (2, 3), generator()).double()
    feature = drawn(1, 2, 3, 4, 4).requires_grad_()
    made = projector(feature)
    assert made.shape == (2, 8, 2, 3)
    (gradient,) = torch.autograd.grad(made[0, :, 1, 1].square().sum(), feature)
    assert (gradient[0].abs().amax(0) > 0).all()  # from all positions
    assert gradient[1].abs().max() == 0  # and no other example


def test_attention_follows_its_formula():
    projector = CrossAttentionProjector(3, 6, (4,), (2,), generator()).double()  # 6 heads of 1
    with torch.no_grad():
        projector.place.copy_(drawn(4, 3, 4))
    weights = {name: tensor.numpy() for name, tensor in projector.state_dict().items()}
    feature = drawn(1, 1, 3, 4)
    tokens = (feature[0].numpy() + weights["place"]).T

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    q, k, v = linear("q", weights["queries"]), linear("k", tokens), linear("v", tokens)
    seen = np.zeros((2, 6))
    for query in range(2):
        for head in range(6):
            powers = np.exp(q[query, head] * k[:, head])
            seen[query, head] = (powers / powers.sum()) @ v[:, head]
    hidden = linear("out", seen)
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    expected = hidden + linear("narrow", np.maximum(linear("widen", hidden), 0))
    np.testing.assert_allclose(projector(feature)[0].detach().numpy(), expected.T, rtol=1e-9)


def remembering(memory: int, population: int = 50) -> Remembering:
    return Remembering(Contrastive(memory=memory, width=4), population, nn.Flatten(), nn.Flatten())


def test_the_first_batch_has_its_own_negatives_and_the_next_has_the_first_beside():
    module = remembering(8)
    batches = [(drawn(2 * i, 3, 4, 1), drawn(2 * i + 1, 3, 4, 1)) for i in range(2)]
    flat = [tuple(part.flatten(1) for part in pair) for pair in batches]
    torch.testing.assert_close(module(*batches[0]), contrastive(*flat[0], 50))
    torch.testing.assert_close(module(*batches[1]), contrastive(*flat[1], 50, memory=flat[0]), rtol=1e-5, atol=1e-5)


def test_the_ring_holds_the_last_examples_and_no_more():
    module = remembering(4)
    seen = [drawn(i, 3, 4, dtype=torch.float32) for i in range(3)]
    for embeddings in seen:
        module(embeddings.unsqueeze(2), 2 * embeddings.unsqueeze(2))
    held = {tuple(row) for row in (10 * module.get_buffer("of_student")).round().int().tolist()}
    units = nn.functional.normalize(torch.cat(seen), dim=1)[-4:]
    assert held == {tuple(row) for row in (10 * units).round().int().tolist()}
    torch.testing.assert_close(module.get_buffer("of_student"), module.get_buffer("of_teacher"))


def test_the_memory_is_never_larger_than_the_training_split_and_can_be_nothing():
    assert len(remembering(100, population=7).get_buffer("of_student")) == 7
    module = remembering(0)
    feature = drawn(1, 3, 4, 1)
    torch.testing.assert_close(module(feature, feature), module(feature, feature))


def test_gradients_go_through_the_batch_while_the_memory_is_written():
    module = remembering(8)
    student = drawn(1, 3, 4, 1, dtype=torch.float32).requires_grad_()
    for _ in range(2):
        value = module(student, drawn(2, 3, 4, 1, dtype=torch.float32)).sum()
    value.backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0
    assert not module.get_buffer("of_student").requires_grad
