"""The global form of a Wasserstein distance between two models' features: what a critic of bounded slope can tell apart."""

from __future__ import annotations

import torch

from kdc.distill.objectives.shapes import same_batch, wide


def critic_gap(scores: torch.Tensor) -> torch.Tensor:
    """Minus the dual form of the Wasserstein distance between pairs of one example and pairs of two.

    mean over j != i of f(t_i, s_j) - f(t_i, s_i). Where f is 1-Lipschitz and the best such, minus its mean is the distance
    between the joint distribution of both features and the product of their marginals; critic and student both lower it,
    so that a student's feature tells which example it is of.

    Args: scores: f of the teacher's feature i (rows) and the student's feature j (columns), [batch, batch]; 2 or more, of
        a critic that is 1-Lipschitz (`kdc.distill.projectors.LipschitzCritic`).
    Returns: [batch], in units of the features' distance; 0 where the critic tells nothing, below 0 where it does.
    Raises: ModelError where scores are not square or have one row.
    Source: Chen et al. 2021 (WCoRD), arXiv:2012.08674, as in the abstract (dual form, contrast of joint and marginals);
    negatives from the batch, and the difference of plain means, are ours.
    """
    same_batch(scores, scores.T, at_least=2)
    scores = wide(scores)
    own = scores.diagonal()
    others = 1 - torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    return (scores * others).sum(1) / (len(scores) - 1) - own
