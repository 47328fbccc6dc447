"""Logits compared after they are normalised: over an example's classes, over a class's examples, or both.

A student need not have the size of its teacher's logits, only their pattern. `standardised_kd` looks at each example by
itself; `luminet` and `dist` look across the batch, so that their values depend on which examples are in it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.distill.objectives.distributions import kl, log_probabilities, matched, per_example

_LEAST = 1e-3  # a spread below this, of logits or of probabilities by their mean, is not blown up any further


def standardised(logits: torch.Tensor) -> torch.Tensor:
    """The z-score over the last dimension: minus its mean, by its standard deviation (over classes - 1).

    Source: Sun et al. 2024, arXiv:2403.01427; classes - 1 as in its official code, whose 1e-7 in place of
    our least deviation gives equal logits a gradient of ten million.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    # A norm has a gradient of 0 at 0; the square root inside a standard deviation has none.
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / max(1, logits.shape[-1] - 1) ** 0.5
    scores: torch.Tensor = centred / deviation.clamp(min=_LEAST)
    return scores


def standardised_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL between the softened z-scores of the logits, times temperature²: the student keeps a size of its own.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0, of the z-scores.
    Returns: nats, [batch]; 0 where student = a teacher + b for any a > 0 and b.
    Raises: ModelError where the shapes differ.
    Source: Sun et al. 2024, arXiv:2403.01427, as in its official code (`kd_loss`; temperature 2 and weight 9 of its README).
    """
    student, teacher = matched(student, teacher)
    log_p, log_q = (log_probabilities(standardised(logits), temperature) for logits in (teacher, student))
    return per_example(kl(log_p, log_q)) * temperature**2


def luminet(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL between softened perceptions, times temperature²; perception is each class's logits standardised over the batch.

    A batch of one has no spread and gives 0. Where there are dimensions between batch and classes, every position
    counts as an example.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0.
    Returns: nats, [batch]; 0 where each class's logits are those of the teacher scaled by a > 0 and shifted.
    Raises: ModelError where the shapes differ.
    Source: Hossain et al. 2023 (LumiNet), arXiv:2310.03669; mean, variance (over the batch size) and 1e-5 as in its
    official code, which weighs the loss by a factor of its own where temperature² stands here.
    """
    student, teacher = matched(student, teacher)
    log_p, log_q = (log_probabilities(_perception(logits), temperature) for logits in (teacher, student))
    return per_example(kl(log_p, log_q)) * temperature**2


def _perception(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.flatten(0, -2)
    centred = rows - rows.mean(0)
    return (centred / (centred.square().mean(0) + 1e-5).sqrt()).view_as(logits)


def dist(student: torch.Tensor, teacher: torch.Tensor, temperature: float, beta: float, gamma: float) -> torch.Tensor:
    """beta (1 - correlation over classes) + gamma (1 - correlation over examples, mean over classes), times temperature².

    Both correlations are Pearson's, of softened probabilities: what the student learns is which classes are more likely
    for an example, and which examples are more likely of a class, not by how much. The second looks across the batch. It
    is half the squared distance of two vectors of length 1, and each example has its own term of that sum, so that the
    mean over examples is the paper's loss. A class without spread over the batch, as in a batch of one, has no say.
    Where there are dimensions between batch and classes, every position counts as an example.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. beta, gamma: weights, >= 0.
    Returns: [batch], without a unit, 0 or more; their mean is at most 2 (beta + gamma) temperature².
    Raises: ModelError where the shapes differ.
    Source: Huang et al. 2022 (DIST), arXiv:2205.10536, as in the authors' code (hunto/image_classification_sota, `DIST`):
    weight 2 for both correlations, temperature 4 in its setting for CIFAR-100 and 1 in the one for ImageNet.
    """
    student, teacher = matched(student, teacher)
    q, p = ((logits / temperature).softmax(-1) for logits in (student, teacher))
    inter = (_unit(q, -1) * _unit(p, -1)).sum(-1)
    rows_q, rows_p = q.flatten(0, -2), p.flatten(0, -2)
    apart = 0.5 * len(rows_q) * (_unit(rows_q, 0) - _unit(rows_p, 0)).square().mean(-1).view_as(inter)
    return per_example(beta * (1 - inter) + gamma * apart) * temperature**2


def _unit(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Centred and scaled to length 1 over the dimension; the product of two such is Pearson's correlation.

    By their mean first, which leaves the result as it is, so that a rare class counts as much as a frequent one and a
    class without spread has no infinite gradient.
    """
    mean = values.mean(dim, keepdim=True)
    return F.normalize((values - mean) / mean.detach().clamp(min=1e-30), dim=dim, eps=_LEAST)
