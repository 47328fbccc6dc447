"""A sparse row: the top to the bit, the rest unbiased, the size as computed."""

import numpy as np
import pytest
import torch

from kdc.distill.answer_settings import DENSE_CLASSES, AnswerForm
from kdc.distill.forms import decode, encode, row_bytes
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.sparse import estimated, pairs, row_type, sampled_cross_entropy, sparse_rows, spread

CLASSES = 40


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def form(**changes: object) -> AnswerForm:
    return AnswerForm(kind="sparse", **{"top": 4, "samples": 6, **changes})


LOGITS = 2 * torch.randn((1, CLASSES), generator=seeded(1))
DRAWS = 20_000


def drawn(made: AnswerForm) -> np.ndarray:
    """The same row, drawn many times."""
    return sparse_rows(LOGITS.expand(DRAWS, -1), made, seeded(2))


def probabilities(temperature: float) -> np.ndarray:
    z = LOGITS[0].double().numpy() / temperature
    e = np.exp(z - z.max())
    return e / e.sum()


def dense(rows: np.ndarray, made: AnswerForm) -> np.ndarray:
    """p-hat by loops over the pairs, float64."""
    found = pairs(rows, made)
    total = np.zeros((len(rows), CLASSES))
    np.add.at(total, (np.arange(len(rows))[:, None], found.classes.numpy()), found.weights.double().numpy())
    return total


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.3])
def test_the_estimates_mean_is_the_exact_distribution(power, temperature):
    made = form(power=power, temperature=temperature)
    found = dense(drawn(made), made)
    mean, error = found.mean(0), found.std(0) / DRAWS**0.5
    p = probabilities(temperature)
    # 288 means are compared: the chance that any of them passes five standard errors is below 2e-4
    assert (np.abs(mean - p) <= 5 * error + 1e-6 * p).all()
    assert (error < 0.02 * p.max()).all()


def test_keeping_the_top_alone_would_not_pass_that_bound():
    made = form()
    found = dense(drawn(made), made)
    top = np.argsort(-probabilities(1.0))[: made.top]
    truncated = np.zeros_like(found)
    truncated[:, top] = found[:, top] / found[:, top].sum(1, keepdims=True)
    assert np.abs(truncated.mean(0) - probabilities(1.0)).max() > 0.05


def test_the_gradient_of_the_sampled_loss_is_that_of_the_whole_one_on_average():
    made = form(power=0.5)
    student = torch.randn((1, CLASSES), generator=seeded(3)).requires_grad_()
    repeated = student.expand(DRAWS, -1)
    (gradient,) = torch.autograd.grad(sampled_cross_entropy(repeated, pairs(drawn(made), made)).mean(), student)
    (exact,) = torch.autograd.grad(soft_targets(student, LOGITS, 1.0).sum(), student)
    torch.testing.assert_close(gradient, exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_through_an_estimated_row_is_right_on_average_too(temperature):
    made = form(temperature=temperature)
    student = torch.randn((1, CLASSES), generator=seeded(3)).requires_grad_()
    rows = estimated(drawn(made), made, CLASSES)
    (gradient,) = torch.autograd.grad(soft_targets(student.expand(DRAWS, -1), rows, temperature).mean(), student)
    (exact,) = torch.autograd.grad(soft_targets(student, LOGITS, temperature).sum(), student)
    torch.testing.assert_close(gradient, exact, atol=2e-3 * temperature, rtol=0)


@pytest.mark.parametrize("made", [form(), form(temperature=3.0)])
def test_each_single_estimate_with_power_1_sums_to_one_and_is_the_softmax_of_its_row(made):
    rows = drawn(made)[:50]
    expected = torch.from_numpy(dense(rows, made))
    torch.testing.assert_close(expected.sum(1), torch.ones(50, dtype=torch.float64), atol=1e-6, rtol=0)
    softmax = torch.softmax(estimated(rows, made, CLASSES).double() / made.temperature, 1)
    torch.testing.assert_close(softmax, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rebuilt", [estimated, spread])
def test_the_top_is_exact_to_the_bit_and_every_value_finite(rebuilt):
    logits = 5 * torch.randn((30, CLASSES), generator=seeded(4))
    logits[0] = 1e4 * logits[0]  # all mass on one class
    made = form(temperature=2.0)
    rows = rebuilt(sparse_rows(logits, made, seeded(5)), made, CLASSES)
    values, classes = logits.topk(made.top, 1)
    assert torch.equal(rows.gather(1, classes), values)
    assert torch.isfinite(rows).all()


def test_a_spread_row_has_the_exact_mass_of_the_rest_evenly():
    made = form(temperature=2.0)
    p = torch.from_numpy(probabilities(2.0))
    found = torch.softmax(spread(drawn(made)[:1], made, CLASSES).double() / 2.0, 1)[0]
    top = p.topk(made.top).indices
    rest = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, top, False)
    torch.testing.assert_close(found[top], p[top], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[rest], (p[rest].mean()).expand(CLASSES - made.top), atol=1e-6, rtol=0)


def test_no_draw_is_of_the_top():
    rows = drawn(form(samples=20))[:200]
    assert not (rows["class"][:, :, None] == rows["top_class"][:, None, :]).any()


def test_stratified_draws_vary_less_than_independent_ones():
    made = form(samples=6)
    p, found = probabilities(1.0), dense(drawn(made), made)
    top = np.argsort(-p)[: made.top]
    rest = np.delete(np.arange(CLASSES), top)
    share = p[rest] / p[rest].sum()
    independent = p[rest].sum() ** 2 * share * (1 - share) / made.samples
    assert found.var(0)[rest].sum() < 0.95 * independent.sum()


@pytest.mark.parametrize(("classes", "width"), [(50_000, 6), (70_000, 8)])
def test_the_size_of_a_row_is_as_computed(classes, width):
    made = AnswerForm(kind="sparse", top=32, samples=32)
    assert row_type(made, classes).itemsize == 64 * width + 8
    outputs = torch.randn((2, 3, classes), generator=seeded(6))
    rows = encode(outputs, made, seeded(7))
    assert rows.shape == (2, 3 * (64 * width + 8)) == (2, row_bytes(made, (3, classes)))
    back = decode(rows, made, (3, classes))
    values, top = outputs.topk(32, -1)
    assert torch.equal(back.gather(-1, top), values)


def test_the_same_generator_gives_the_same_bytes():
    first, again, other = (encode(LOGITS, form(), seeded(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rows_of_many_classes_are_sparse_by_themselves_and_of_few_exact():
    assert AnswerForm().of((DENSE_CLASSES,)).kind == "exact"
    assert AnswerForm().of((7, DENSE_CLASSES + 1)).kind == "sparse"
    assert AnswerForm(kind="sparse", top=32).of((10,)).kind == "exact"


def test_a_row_with_nothing_left_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="nothing is left"):
        sparse_rows(LOGITS[:, :4], form(), seeded(0))
