"""Each objective on features against its paper's formula, and the laws that it obeys; a new one is a new row."""

import dataclasses
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import reference_features as reference
import torch

from kdc.core.errors import ModelError
from kdc.distill.objectives import attention, contrastive, cross_architecture, features, hard_negatives, relations

MAP, WIDE_MAP, FINE_MAP = (4, 3, 4, 4), (4, 5, 4, 4), (4, 3, 8, 8)
VECTOR, WIDE_VECTOR = (5, 4), (5, 7)
TOKENS, WIDE_TOKENS = (3, 5, 8), (3, 5, 12)
MEMORY = [torch.randn((6, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (5, 6)]
LABELS = torch.tensor([0, 3, 1, 1, 2])


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an objective is and which laws it claims.

    least: its value where both features are equal, of all values the least; None where equality is no minimum.
    scale: features of another size change nothing. across: an example's value depends on the batch.
    """

    name: str
    value: Callable[..., torch.Tensor]
    reference: Callable[..., object]
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    least: float | None = 0.0
    scale: bool = False
    across: bool = False


def enhanced(gamma: float, temperature: float) -> Callable[..., torch.Tensor]:
    return lambda s, t: cross_architecture.target_enhanced(s, t, LABELS[: len(s)], gamma, temperature)


OBJECTIVES = [
    Objective("hint", features.hint, reference.hint, MAP, MAP, scale=True),
    Objective("attention_transfer", attention.attention_transfer, reference.attention_transfer, MAP, WIDE_MAP, scale=True),
    Objective("class_attention", attention.class_attention, reference.class_attention, MAP, FINE_MAP, scale=True),
    Objective(
        "orthogonal_match, layer", features.orthogonal_match,
        reference.orthogonal_match(reference.layer_normalised), VECTOR, VECTOR, least=None,
    ),
    Objective(
        "orthogonal_match, standardise", lambda s, t: features.orthogonal_match(s, t, "standardise"),
        reference.orthogonal_match(reference.standardised), VECTOR, VECTOR, least=None, across=True,
    ),
    Objective(
        "orthogonal_match, whiten", lambda s, t: features.orthogonal_match(s, t, "whiten"),
        reference.orthogonal_match(reference.whitened), (6, 3), (6, 3), least=None, across=True,
    ),
    Objective(
        "orthogonal_match, none", lambda s, t: features.orthogonal_match(s, t, "none"),
        reference.orthogonal_match(lambda t: t), VECTOR, VECTOR,
    ),
    Objective(
        "simple_recipe", features.simple_recipe, reference.simple_recipe, VECTOR, VECTOR,
        least=float(np.log(1e-12)), across=True,
    ),
    Objective("masked_recovery", features.masked_recovery, reference.masked_recovery, MAP, MAP),
    Objective("dual_view", features.dual_view, reference.dual_view, MAP, MAP, scale=True),
    Objective(
        "relational_distance", relations.relational_distance, reference.relational_distance, VECTOR, WIDE_VECTOR,
        scale=True, across=True,
    ),
    Objective(
        "relational_angle", relations.relational_angle, reference.relational_angle, VECTOR, WIDE_VECTOR,
        scale=True, across=True,
    ),
    Objective("token_context", relations.token_context, reference.token_context, MAP, WIDE_MAP, scale=True),
    Objective(
        "token_graph", relations.token_graph, reference.token_graph, (3, 3, 2, 2), (3, 4, 2, 2), scale=True, across=True
    ),
    Objective(
        "attention_relations", lambda s, t: relations.attention_relations(s, t, 4), reference.attention_relations(4),
        TOKENS, WIDE_TOKENS,
    ),
    Objective("info_nce", contrastive.info_nce, reference.info_nce, VECTOR, VECTOR, least=None, scale=True, across=True),
    Objective(
        "contrastive", lambda s, t: contrastive.contrastive(s, t, 1000), reference.contrastive(1000), VECTOR, VECTOR,
        least=None, scale=True, across=True,
    ),
    Objective(
        "contrastive, memory", lambda s, t: contrastive.contrastive(s, t, 1000, 0.5, tuple(m.to(s) for m in MEMORY)),
        reference.contrastive(1000, 0.5, [m.tolist() for m in MEMORY]), VECTOR, VECTOR,
        least=None, scale=True, across=True,
    ),
    Objective(
        "dynamic_contrastive", lambda s, t: hard_negatives.dynamic_contrastive(s, t, 2, 0.3, 1.5),
        reference.dynamic_contrastive(2, 0.3, 1.5), VECTOR, VECTOR, least=None, scale=True, across=True,
    ),
    Objective(
        "multi_scale", lambda s, t: contrastive.multi_scale(s, t, (1, 2)), reference.multi_scale, MAP, MAP,
        least=None, scale=True, across=True,
    ),
    Objective(
        "pixel_contrast", contrastive.pixel_contrast, reference.pixel_contrast, MAP, MAP,
        least=None, scale=True, across=True,
    ),
    Objective(
        "local_transport", contrastive.local_transport, reference.local_transport, VECTOR, VECTOR,
        least=None, scale=True, across=True,
    ),
    Objective(
        "mutual_information, 0.7", lambda f, q: contrastive.mutual_information(f, q, 0.7),
        reference.mutual_information(0.7), (5, 5), (5,), least=None, across=True,
    ),
    Objective(
        "mutual_information, 1", lambda f, q: contrastive.mutual_information(f, q, 1.0),
        reference.mutual_information(1.0), (5, 5), (5,), least=None, across=True,
    ),
    Objective(
        "mutual_information, 0", lambda f, q: contrastive.mutual_information(f, q, 0.0),
        reference.mutual_information(0.0), (5, 5), (5,), least=None, across=True,
    ),
    Objective(
        "target_enhanced", enhanced(1.5, 2.0), reference.target_enhanced(LABELS.tolist(), 1.5, 2.0), VECTOR, VECTOR,
        least=None,
    ),
]  # fmt: skip


def those(holds: Callable[[Objective], bool]) -> pytest.MarkDecorator:
    chosen = [objective for objective in OBJECTIVES if holds(objective)]
    return pytest.mark.parametrize("objective", chosen, ids=[objective.name for objective in chosen])


every = those(lambda objective: True)
of_pairs = those(lambda objective: not objective.name.startswith("mutual_information"))  # that is of a table


def drawn(objective: Objective, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = objective.student, objective.teacher
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return student.to(dtype), teacher.to(dtype)


@every
def test_it_is_the_papers_formula_one_value_per_example(objective):
    student, teacher = drawn(objective)
    values = objective.value(student, teacher)
    assert values.shape == student.shape[:1]
    np.testing.assert_allclose(values.numpy(), objective.reference(student.numpy(), teacher.numpy()), rtol=1e-9)


@every
def test_its_gradient_is_that_of_its_value(objective):
    student, teacher = drawn(objective)
    assert torch.autograd.gradcheck(lambda s: objective.value(s, teacher), student.requires_grad_())


@those(lambda objective: objective.least is not None)
def test_equal_features_have_the_least_value_where_it_says_so(objective):
    _, teacher = drawn(objective)
    np.testing.assert_allclose(objective.value(teacher, teacher), objective.least, atol=1e-12)
    assert (objective.value(*drawn(objective)) > objective.least).all()


@every
def test_a_features_size_counts_only_where_it_says_so(objective):
    student, teacher = drawn(objective)
    same = torch.allclose(objective.value(1e3 * student, 1e-3 * teacher), objective.value(student, teacher), rtol=1e-9)
    assert same == objective.scale


@those(lambda objective: objective.name != "target_enhanced")  # whose labels move along: see below
def test_a_permuted_batch_has_permuted_values(objective):
    student, teacher = drawn(objective)
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(1))
    moved = [tensor[order] for tensor in (student, teacher)]
    if objective.name.startswith("mutual_information"):
        moved[0] = moved[0][:, order]  # rows and columns are both examples
    torch.testing.assert_close(objective.value(*moved), objective.value(student, teacher)[order])


@of_pairs
def test_an_example_is_alone_unless_it_says_that_it_looks_across_the_batch(objective):
    student, teacher = drawn(objective)
    fewer = objective.value(student[:2], teacher[:2])
    alone = torch.allclose(fewer, objective.value(student, teacher)[:2], rtol=1e-9)
    assert alone != objective.across


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-4, 6e4])
def test_values_and_gradients_are_finite_for_extreme_features(objective, dtype, size):
    student, teacher = drawn(objective, torch.float32)
    student = (size * student.clamp(-1, 1)).to(dtype).requires_grad_()
    value = objective.value(student, (size * teacher.clamp(-1, 1)).to(dtype))
    value.mean().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@every
def test_half_floats_lose_no_more_than_their_own_rounding(objective):
    student, teacher = drawn(objective, torch.bfloat16)
    exact = objective.value(student.double(), teacher.double())
    torch.testing.assert_close(objective.value(student, teacher).double(), exact, rtol=1e-3, atol=1e-4)


@every
def test_features_that_do_not_fit_are_named(objective):
    student, teacher = drawn(objective)
    with pytest.raises(ModelError, match=r"\d"):
        objective.value(student[:2], teacher[:, None].repeat_interleave(2, 1) if teacher.dim() == 1 else teacher[:1])


def test_the_label_goes_with_its_example():
    student, teacher = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    order = torch.tensor([4, 2, 0, 1, 3])
    values = cross_architecture.target_enhanced(student, teacher, LABELS, 1.3)
    moved = cross_architecture.target_enhanced(student[order], teacher[order], LABELS[order], 1.3)
    torch.testing.assert_close(moved, values[order])


def test_gamma_1_is_cross_entropy_with_the_teachers_distribution_whatever_the_label():
    student, teacher = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = -(teacher.softmax(1) * student.log_softmax(1)).sum(1)
    for labels in (LABELS, LABELS.flip(0)):
        torch.testing.assert_close(cross_architecture.target_enhanced(student, teacher, labels), expected)


def test_logits_may_be_shifted():
    student, teacher = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = cross_architecture.target_enhanced(student, teacher, LABELS, 1.5)
    torch.testing.assert_close(cross_architecture.target_enhanced(student + 100, teacher - 50, LABELS, 1.5), values)


def test_transport_with_little_entropy_is_the_best_assignment():
    student, teacher = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cost = [[1 - reference.cosine(a, b) for b in teacher.numpy()] for a in student.numpy()]
    best = min(np.mean([cost[i][j] for i, j in enumerate(order)]) for order in permutations(range(5)))
    assert float(contrastive.local_transport(student, teacher, 0.002, 3000).mean()) == pytest.approx(best, abs=1e-3)


def test_mutual_information_of_a_perfect_critic_is_the_log_of_the_batch_at_alpha_1():
    scores = torch.full((8, 8), -50.0).fill_diagonal_(50.0)
    torch.testing.assert_close(
        contrastive.mutual_information(scores, torch.zeros(8), 1.0), -torch.full((8,), 8.0).log()
    )


def test_whitened_features_are_uncorrelated_with_variance_1():
    feature = torch.randn((200, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = features.whiten(feature @ torch.randn((4, 4), generator=torch.Generator().manual_seed(1)).double())
    torch.testing.assert_close(white.T @ white / 200, torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)


def test_an_attention_map_does_not_depend_on_the_number_of_channels():
    feature = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(attention.attention_map(feature), attention.attention_map(feature.repeat(1, 4, 1, 1)))


def test_relations_do_not_see_a_rotation_of_the_features():
    student, teacher = torch.randn((2, 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn((4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    for relation in (relations.relational_distance, relations.relational_angle):
        torch.testing.assert_close(relation(student @ rotation, teacher), relation(student, teacher))


def test_relation_heads_that_do_not_divide_the_channels_are_named():
    with pytest.raises(ModelError, match="3 relation heads do not divide 8 channels"):
        relations.attention_relations(torch.zeros(TOKENS), torch.zeros(WIDE_TOKENS), 3)


def test_a_batch_of_one_has_no_relations():
    one = torch.ones((1, 4))
    for objective in (relations.relational_distance, relations.relational_angle, features.simple_recipe):
        with pytest.raises(ModelError, match="2 or more"):
            objective(one, one)
