"""Objectives that tell an example's pair of features from the pairs of different examples, and transport between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from kdc.distill.alignment import resized
from kdc.distill.objectives.shapes import directions, same_batch, same_shape, wide


def info_nce(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.07) -> torch.Tensor:
    """-log of the share that an example's own teacher feature has among those of the batch, seen from the student's.

    -log(exp(cos(s_i, t_i) / temperature) / sum over j of exp(cos(s_i, t_j) / temperature)).

    Args: student, teacher: embeddings of one shape, [batch, channels]; the length does not count. temperature: > 0.
    Returns: nats, [batch].
    Raises: ModelError where the shapes differ.
    Source: van den Oord et al. 2018, arXiv:1807.03748, between models as in Tian et al. 2020,
    "Contrastive Representation Distillation", arXiv:1910.10699.
    """
    same_shape(student, teacher)
    return -_scores(student, teacher, temperature).log_softmax(1).diagonal()


def contrastive(
    student: torch.Tensor,
    teacher: torch.Tensor,
    population: int,
    temperature: float = 0.07,
    memory: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """CRD: is a pair of features of one example, or of two? Noise-contrastive, from both sides.

    h(s, t) = e^(s.t / temperature) / (e^(s.t / temperature) + N / M), N negatives, M = population. The value of i is
    -log h(s_i, t_i) - sum over negatives j of log(1 - h(s_i, t_j)), and the same with the teacher's as the anchor. The
    negatives are the other examples of the batch and those of the memory.

    Args: student, teacher: embeddings of one shape, [batch, channels]; scaled to length 1 here. population: examples in
        the training split. temperature: > 0. 2 examples or more. memory: embeddings of earlier examples as they were
        then, the student's and the teacher's, [earlier, channels] each.
    Returns: nats, [batch], of 2 * (N + 1) decisions.
    Raises: ModelError where the shapes differ or the batch has one example.
    Source: Tian et al. 2020, arXiv:1910.10699; as in the authors' code (HobbitLong/RepDistiller, `ContrastLoss`), but
    that the normalising constant, which the code finds from its first batch, is left out, and that the memory is of the
    last examples (`kdc.distill.memory`), where the code keeps one average an example and draws 16384 of them.
    """
    same_shape(student, teacher)
    same_batch(student, teacher, at_least=2)
    earlier = 0 if memory is None else len(memory[0])
    # h = sigmoid(score - log(N / M)), which is exact where the exponentials would overflow.
    log_noise = math.log((len(student) - 1 + earlier) / population)
    odds = _scores(student, teacher, temperature) - log_noise
    own = F.logsigmoid(odds.diagonal())
    others = F.logsigmoid(-odds) * (1 - torch.eye(len(odds), dtype=odds.dtype, device=odds.device))
    value = -2 * own - others.sum(1) - others.sum(0)
    if memory is not None and earlier:
        for anchor, remembered in ((student, memory[1]), (teacher, memory[0])):
            value = value - F.logsigmoid(log_noise - _scores(anchor, remembered, temperature)).sum(1)
    return value


def multi_scale(
    student: torch.Tensor, teacher: torch.Tensor, scales: Sequence[int] = (1, 2, 4), temperature: float = 0.07
) -> torch.Tensor:
    """Contrast of local features: each map is cut into `scale` regions a side, and each region told from other examples'.

    Mean over scales of the mean over regions of `info_nce` between the average-pooled regions of one place.

    Args: student: projected to the teacher's channels, teacher: both [batch, channels, *positions]. scales: >= 1 each,
        regions along each dimension.
    Returns: nats, [batch].
    Raises: ModelError where the shapes differ.
    Source: Wang et al. 2025, "Contrastive Representation Distillation via Multi-Scale Feature Decoupling",
    arXiv:2502.05835, as in the abstract (regions of several scales, contrast within a single batch); the grids, InfoNCE
    and both means are ours.
    """
    same_shape(student, teacher)
    values = []
    for scale in scales:
        size = (scale,) * (student.dim() - 2)
        regions = [resized(wide(f), size).flatten(2).permute(2, 0, 1) for f in (student, teacher)]
        values.append(torch.stack([info_nce(s, t, temperature) for s, t in zip(*regions, strict=True)]).mean(0))
    return torch.stack(values).mean(0)


def pixel_contrast(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """PCD: each pixel of the student's map is told to be the teacher's pixel of that place, not another example.

    Mean over pixels p of -log(e^(s_p.t_p / temperature) / (e^(s_p.t_p / temperature) + sum over the other examples k of
    e^(s_p.m_k / temperature))), all of length 1; m_k is the mean of the teacher's map of example k.

    Args: student: projected to the teacher's channels, teacher: both [batch, channels, *positions]. temperature: > 0.
    Returns: nats, [batch].
    Raises: ModelError where the shapes differ.
    Source: Huang and Guo 2023, "Pixel-Wise Contrastive Distillation", arXiv:2211.00218, as in the abstract (contrast of
    corresponding pixels). Negatives from the batch's means in place of its queue, and the temperature, are ours;
    its SpatialAdaptor and attention are no part of this function.
    """
    same_shape(student, teacher)
    s, t = (directions(feature.flatten(2), 1) for feature in (student, teacher))
    means = directions(wide(teacher).flatten(2).mean(2), 1)
    positive = (s * t).sum(1, keepdim=True) / temperature
    negative = torch.einsum("bcp,kc->bkp", s, means) / temperature
    own = torch.eye(len(s), dtype=torch.bool, device=s.device).unsqueeze(2)
    logits = torch.cat([positive, negative.masked_fill(own, -math.inf)], 1)
    return -logits.log_softmax(1)[:, 0].mean(1)


def local_transport(
    student: torch.Tensor, teacher: torch.Tensor, entropy: float = 0.05, iterations: int = 50
) -> torch.Tensor:
    """WCoRD's local part: the Wasserstein distance between the batch's two sets of features, in its primal form.

    batch * sum over j of P_ij (1 - cos(s_i, t_j)), where P moves equal weights of the student's examples to equal weights
    of the teacher's at the least cost plus `entropy` times the negative entropy of P, by Sinkhorn's iterations on
    logarithms. The mean over the batch is the transport's cost.

    Args: student, teacher: embeddings of one shape, [batch, channels]. entropy: > 0. iterations: >= 1.
    Returns: [batch], 0 to 2.
    Raises: ModelError where the shapes differ.
    Source: Chen et al. 2021, "Wasserstein Contrastive Representation Distillation", arXiv:2012.08674, as in the abstract
    (primal form within a mini-batch); cosine cost and Sinkhorn (Cuturi 2013, arXiv:1306.0895) with these numbers are
    ours. Its global part is `kdc.distill.objectives.wasserstein.critic_gap`.
    """
    same_shape(student, teacher)
    cost = 1 - directions(student, 1) @ directions(teacher, 1).T
    kernel, share = -cost / entropy, -math.log(len(cost))
    rows = torch.zeros_like(cost[:, 0])
    columns = rows
    for _ in range(iterations):
        columns = share - torch.logsumexp(kernel + rows.unsqueeze(1), 0)
        rows = share - torch.logsumexp(kernel + columns.unsqueeze(0), 1)
    plan = (kernel + rows.unsqueeze(1) + columns.unsqueeze(0)).exp()
    return len(cost) * (plan * cost).sum(1)


def mutual_information(scores: torch.Tensor, log_baseline: torch.Tensor, alpha: float = 0.9) -> torch.Tensor:
    """MI-alpha: minus a lower bound of the mutual information between the student's and the teacher's features.

    I_alpha = 1 + log(e^f_ii / b_i) - mean over j != i of e^f_ij / b'_i, with b_i = alpha * mean over all j of e^f_ij +
    (1 - alpha) * q_i, and b'_i the same with the mean over j != i. alpha = 1 is InfoNCE (small variance, at most log of
    the batch), alpha = 0 a bound with a learned baseline (small bias, large variance).

    Args: scores: a critic's f of the teacher's feature i (rows) and the student's feature j (columns), [batch, batch];
        2 or more. log_baseline: log q of the teacher's features, [batch]. alpha: 0 to 1.
    Returns: nats, [batch]; -I_alpha.
    Raises: ModelError where scores are not square or have one row.
    Source: He et al. 2022, "Distiller", arXiv:2109.11105, which takes I_alpha from Poole et al. 2019, "On Variational
    Bounds of Mutual Information", arXiv:1905.06922 (the nonlinearly interpolated bound); estimated here with
    each example's teacher feature as the anchor.
    """
    same_batch(scores, scores.T, at_least=2)
    scores, log_baseline = wide(scores), wide(log_baseline)
    count = len(scores)
    own = torch.eye(count, dtype=torch.bool, device=scores.device)
    negatives = scores.masked_fill(own, -math.inf)

    def interpolated(log_mean: torch.Tensor) -> torch.Tensor:
        if alpha == 1:
            return log_mean
        if alpha == 0:
            return log_baseline
        return torch.logaddexp(log_mean + math.log(alpha), log_baseline + math.log(1 - alpha))

    joint = scores.diagonal() - interpolated(scores.logsumexp(1) - math.log(count))
    log_negatives = negatives.logsumexp(1) - math.log(count - 1)
    # e^x grows without bound for alpha < 1; beyond e^20 the bound says nothing and its gradient would end a training.
    marginal = (log_negatives - interpolated(log_negatives)).clamp_max(20.0).exp()
    return marginal - 1 - joint


def _scores(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return directions(student, 1) @ directions(teacher, 1).T / temperature
