"""The batch's outputs carried onto the teacher's: optimal transport between examples."""

from __future__ import annotations

import torch

from kdc.distill.objectives.distributions import matched, per_example


def sinkhorn(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, blur: float, iterations: int
) -> torch.Tensor:
    """Cost of carrying each student's distribution to the teachers' of the batch, under the blurred cheapest plan.

    The cost of a pair is the sum of |q_i - p_j| over classes, the plan exp(-cost / blur) scaled by turns until its rows
    and columns sum to 1 (Sinkhorn's iterations, in logarithms). Unlike a divergence it stays informative where the two
    distributions barely overlap, and it sees how examples lie to each other. Not 0 for equal batches: `blur` carries a
    little between examples that are alike, less the smaller it is. The gradient goes through the iterations.

    Args: student, teacher: logits, [batch, ..., classes]; where there are dimensions between, every position counts as an
        example. temperature: > 0. blur: weight of the plan's entropy, in units of cost, > 0. iterations: >= 1.
    Returns: [batch], 0 to 2; the sum over a batch [batch, classes] is the paper's loss.
    Raises: ModelError where the shapes differ.
    Source: Cui et al. 2024 (SinKD), arXiv:2402.17110, batch-wise form; cost, iterations and defaults as in its official
    code (2018cx/SinKD, `loss.py`), which multiplies by 0.001 more.
    """
    student, teacher = matched(student, teacher)
    q, p = ((logits / temperature).softmax(-1).flatten(0, -2) for logits in (student, teacher))
    cost = torch.cdist(q, p, p=1)
    log_plan = -cost / blur
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
    return per_example((log_plan.exp() * cost).sum(1).view(student.shape[:-1]))
