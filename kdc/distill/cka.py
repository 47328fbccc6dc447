"""How alike two layers see the same inputs: linear centred kernel alignment."""

from __future__ import annotations

import torch


def gram(feature: torch.Tensor) -> torch.Tensor:
    """Inner products of the centred features of all examples: [n, ...] -> [n, n], float64.

    It is what CKA needs of a layer; it takes n^2 numbers where the features would take all of theirs.
    """
    flat = feature.flatten(1).float()
    flat = flat - flat.mean(0)
    return (flat @ flat.T).double()


def alignment(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear CKA of two layers from their `gram`s of the same examples: <K, L> / (|K| |L|).

    That is |Y^T X|^2 / (|X^T X| |Y^T Y|) of the centred features X, Y, in Frobenius norms: 1 for features that differ by a
    rotation and a scale, and 0 where nothing is shared, or one of them is constant. It does not see which channel is
    which, so that layers of any widths can be compared. With few examples it is biased upwards.

    Args: first, second: [n, n].
    Returns: 0 to 1.
    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.
    """
    lengths = float(first.norm() * second.norm())
    return float((first * second).sum()) / lengths if lengths > 0 else 0.0
