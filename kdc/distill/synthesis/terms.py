"""What tells a sample that the teacher knows from noise: its answers, its features, and how neighbours agree."""

from __future__ import annotations

import itertools
import math

import torch
from torch.nn import functional


def one_hot(logits: torch.Tensor) -> torch.Tensor:
    """How unsure a model is of its own choice: -log max softmax(logits), the cross-entropy with its own argmax.

    Args: logits: [batch, classes].
    Returns: nats, [batch]; 0 for a one-hot answer, at most log(classes).
    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186, section 3.2; the measure of noise of Chen et al. 2021 (DFND) too.
    """
    return -functional.log_softmax(logits, 1).max(1).values


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each answer: nats, [batch, classes] -> [batch]; 0 to log(classes)."""
    logs = functional.log_softmax(logits, 1)
    return -(logs.exp() * logs).sum(1)


def activation(features: torch.Tensor) -> torch.Tensor:
    """How little a model's features answer to a sample: -mean |features|.

    Args: features: [batch, ...], what comes in at the model's head.
    Returns: [batch], 0 or below.
    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186, section 3.2; the mean over a sample's features in place of their
        sum, as in the authors' code.
    """
    return features.flatten(1).abs().mean(1).neg()


def information_entropy(logits: torch.Tensor) -> torch.Tensor:
    """How unevenly a batch's answers fall on the classes: the negative entropy of the mean softmax(logits).

    Args: logits: [batch, classes].
    Returns: nats, one number of the batch; -log(classes) where all classes are alike, 0 where there is one alone.
    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186, section 3.2 (the authors' code: logarithm to base 10).
    """
    # The logarithm of the mean without the mean: one that underflows to 0 would have no gradient that is a number.
    logs = functional.log_softmax(logits, 1).logsumexp(0) - math.log(len(logits))
    return (logs.exp() * logs).sum()


def total_variation(inputs: torch.Tensor) -> torch.Tensor:
    """How much neighbours differ: the sum of the Euclidean norms of the differences along each axis and each diagonal.

    Args: inputs: [batch, channels, positions...], with any number of axes of positions.
    Returns: [batch]; 0 for inputs without positions. Neighbours along an axis, and, over each pair of axes, along both
        diagonals.
    Source: Yin et al. 2020 (DeepInversion), arXiv:1912.08795, section 3.1; the four differences of a map are those of
        the authors' code, which takes one norm over the whole batch. That is sqrt(batch) times the mean of ours where
        samples are alike: its weight 2.5e-5 for 256 samples is 4e-4 here.
    """
    found = inputs.new_zeros(len(inputs))
    axes = range(2, inputs.dim())
    for axis in axes:
        found = found + _norm(_from(inputs, axis) - _until(inputs, axis))
    for one, other in itertools.combinations(axes, 2):
        found = found + _norm(_until(_from(inputs, one), other) - _from(_until(inputs, one), other))
        found = found + _norm(_until(_until(inputs, one), other) - _from(_from(inputs, one), other))
    return found


def _from(inputs: torch.Tensor, axis: int) -> torch.Tensor:
    """All positions but the first."""
    return inputs.narrow(axis, 1, inputs.shape[axis] - 1)


def _until(inputs: torch.Tensor, axis: int) -> torch.Tensor:
    """All positions but the last."""
    return inputs.narrow(axis, 0, inputs.shape[axis] - 1)


def _norm(differences: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(differences.flatten(1), dim=1)
    return norm
