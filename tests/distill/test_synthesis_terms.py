"""The terms that synthetic samples are made by: loops in float64 beside them, gradients, and what each is lowest for."""

import math

import numpy as np
import pytest
import torch

from kdc.distill.synthesis.statistics import moments, statistics_distance
from kdc.distill.synthesis.terms import activation, entropy, information_entropy, one_hot, total_variation


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def by_loops(logits: np.ndarray) -> tuple[list[float], list[float], float]:
    """one_hot and entropy of each row, and information_entropy of all."""
    answers = [softmax(row) for row in logits]
    sure = [-math.log(max(answer)) for answer in answers]
    entropies = [-sum(p * math.log(p) for p in answer) for answer in answers]
    mean = [sum(answer[j] for answer in answers) / len(answers) for j in range(logits.shape[1])]
    return sure, entropies, sum(p * math.log(p) for p in mean)


def variation_by_loops(image: np.ndarray) -> float:
    """Of [channels, height, width]: right, down, and both diagonals."""
    total = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        squares = 0.0
        for c, y, x in np.ndindex(*image.shape):
            if 0 <= y + down < image.shape[1] and 0 <= x + right < image.shape[2]:
                squares += (image[c, y + down, x + right] - image[c, y, x]) ** 2
        total += math.sqrt(squares)
    return total


def test_terms_of_answers_equal_their_loops():
    logits = draw(7, 5)
    sure, entropies, information = by_loops(logits.numpy())
    assert one_hot(logits).tolist() == pytest.approx(sure)
    assert entropy(logits).tolist() == pytest.approx(entropies)
    assert float(information_entropy(logits)) == pytest.approx(information)


def test_total_variation_equals_its_loops_and_counts_all_axes():
    images = draw(3, 2, 4, 5)
    assert total_variation(images).tolist() == pytest.approx([variation_by_loops(image) for image in images.numpy()])
    series = draw(2, 1, 6)
    assert total_variation(series).tolist() == pytest.approx(
        [math.sqrt(sum((row[0][t + 1] - row[0][t]) ** 2 for t in range(5))) for row in series.tolist()]
    )
    assert total_variation(draw(3, 8)).tolist() == [0, 0, 0]
    assert total_variation(torch.ones(2, 3, 4, 4, 4)).tolist() == [0, 0]


def test_activation_is_the_mean_size_of_a_samples_features():
    features = draw(3, 2, 2)
    assert activation(features).tolist() == pytest.approx(
        [-sum(abs(v) for row in sample for v in row) / 4 for sample in features.tolist()]
    )


def test_the_distance_of_statistics_equals_its_loops():
    features, mean, variance = draw(4, 3, 2, 2), draw(3, seed=1), draw(3, seed=2).abs()
    means, variances = [], []
    for channel in range(3):
        values = [float(v) for sample in features for v in sample[channel].flatten()]
        means.append(sum(values) / len(values))
        variances.append(sum((v - means[-1]) ** 2 for v in values) / len(values))
    expected = math.dist(means, mean.tolist()) + math.dist(variances, variance.tolist())
    assert float(statistics_distance(features, mean, variance)) == pytest.approx(expected)
    assert float(statistics_distance(features, *moments(features))) == 0


def test_gradients_are_those_of_the_formulas():
    logits, images = draw(4, 3).requires_grad_(), draw(2, 2, 3, 3, seed=1).requires_grad_()
    running = draw(2, seed=2), draw(2, seed=3).abs()
    for function in (one_hot, entropy, information_entropy):
        assert torch.autograd.gradcheck(function, (logits,))
    for function in (activation, total_variation, lambda x: statistics_distance(x, *running)):
        assert torch.autograd.gradcheck(function, (images,))


def test_each_term_is_lowest_where_a_sample_is_what_it_asks_for():
    sure, unsure = 50 * torch.eye(4), torch.zeros(4, 4)
    assert one_hot(sure).max() < 1e-6
    assert one_hot(unsure).tolist() == pytest.approx([math.log(4)] * 4)
    assert entropy(sure).max() < 1e-6
    assert float(information_entropy(sure)) == pytest.approx(-math.log(4))  # all four classes alike
    assert float(information_entropy(sure[:1].expand(4, 4))) == pytest.approx(0, abs=1e-6)  # one alone


def test_the_order_of_a_batch_changes_no_samples_value():
    logits, order = draw(6, 4), torch.tensor([3, 0, 5, 1, 4, 2])
    for function in (one_hot, entropy, activation, lambda x: total_variation(x[:, None])):
        assert torch.equal(function(logits[order]), function(logits)[order])
    assert float(information_entropy(logits[order])) == pytest.approx(float(information_entropy(logits)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_answers_give_numbers_and_so_do_their_gradients(dtype: torch.dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [2e4, 0.0, -3e4]], dtype=dtype).requires_grad_()
    for function in (one_hot, entropy, information_entropy):
        value = function(logits)
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()
