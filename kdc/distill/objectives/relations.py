"""Objectives on relations: how examples, or tokens, stand to each other; channels may differ between the two models."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.objectives.shapes import directions, same_batch, wide


def relational_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """RKD-D: Huber distance between the two models' tables of distances between examples.

    Each table is divided by the mean of its distances that are not 0. The value of example i is the mean over all j of
    the Huber distance (d^2 / 2 below 1, |d| - 1/2 above) of its entries.

    Args: student, teacher: [batch, channels]; the channels may differ; 2 examples or more.
    Returns: [batch], without a unit.
    Raises: ModelError where the batches differ or have one example.
    Source: Park et al. 2019, "Relational Knowledge Distillation", arXiv:1904.05068; the mean, where the paper sums,
    as in the code of mdistiller.
    """
    same_batch(student, teacher, at_least=2)
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean(1)


def _distances(features: torch.Tensor) -> torch.Tensor:
    features = wide(features.flatten(1))
    features = features / features.detach().abs().amax().clamp_min(torch.finfo(features.dtype).tiny)
    exact = "donot_use_mm_for_euclid_dist"  # the product's rounding makes distances of near examples noise
    distances = torch.cdist(features, features, compute_mode=exact)
    apart = distances > 0
    return distances / torch.where(apart, distances, 0.0).sum().div(apart.sum().clamp_min(1)).clamp_min(1e-12)


def relational_angle(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """RKD-A: Huber distance between the cosines of all angles that three examples make.

    The value of example i is the mean over all j, k of the Huber distance of cos(angle j i k), the angle at i.

    Args: student, teacher: [batch, channels]; the channels may differ; 2 examples or more.
    Returns: [batch], 0 to 3/2. It takes batch^2 * channels and batch^3 numbers of memory.
    Raises: ModelError where the batches differ or have one example.
    Source: Park et al. 2019, arXiv:1904.05068; the mean as in the code of mdistiller.
    """
    same_batch(student, teacher, at_least=2)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher), reduction="none").mean((1, 2))


def _cosines(features: torch.Tensor) -> torch.Tensor:
    features = wide(features.flatten(1))
    features = features / features.detach().abs().amax().clamp_min(torch.finfo(features.dtype).tiny)
    edges = features.unsqueeze(0) - features.unsqueeze(1)
    edges = edges / edges.square().sum(2, keepdim=True).clamp_min(1e-24).sqrt()
    return edges @ edges.transpose(1, 2)


def token_context(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Token relations within an example: divergence of each token's distribution of similarity over the others.

    Mean over tokens i of KL(softmax_j(cos(t_i, t_j) / temperature) || softmax_j(cos(s_i, s_j) / temperature)).

    Args: student, teacher: [batch, channels, *positions] with as many positions; the channels may differ.
    Returns: nats, [batch].
    Raises: ModelError where batch or positions differ.
    Source: the contextual loss of Zhang et al. 2023, "Knowledge Distillation via Token-level Relationship Graph",
    arXiv:2306.12442, as in the abstract; cosine, softmax and divergence are ours.
    """
    _same_tokens(student, teacher)
    tables = [unit.transpose(1, 2) @ unit for unit in (directions(f.flatten(2), 1) for f in (student, teacher))]
    return _divergence(tables[0], tables[1], temperature).mean(1)


def token_graph(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Token relations across the batch: the same divergence, of each token over the tokens of all other examples.

    Args: student, teacher: [batch, channels, *positions] with as many positions; 2 examples or more; the channels may
        differ. It takes (batch * positions)^2 numbers: pool the maps first.
    Returns: nats, [batch].
    Raises: ModelError where batch or positions differ, or the batch has one example.
    Source: the relationship graph of Zhang et al. 2023, arXiv:2306.12442, as in the abstract; that the graph is complete
    over the batch, and cosine, softmax and divergence, are ours.
    """
    _same_tokens(student, teacher)
    same_batch(student, teacher, at_least=2)
    count = student[0, 0].numel()
    own = torch.arange(len(student), device=student.device).repeat_interleave(count)
    others = own.unsqueeze(0) != own.unsqueeze(1)
    tables = []
    for feature in (student, teacher):
        unit = directions(feature.flatten(2), 1).transpose(1, 2).flatten(0, 1)
        table = unit @ unit.T
        tables.append(table[others].reshape(len(own), -1))
    return _divergence(tables[0], tables[1], temperature).reshape(len(student), count).mean(1)


def attention_relations(student: torch.Tensor, teacher: torch.Tensor, heads: int) -> torch.Tensor:
    """MiniLMv2's relation loss of one kind of vector (queries, keys or values).

    The vectors of all attention heads stand side by side and are cut into `heads` relation heads of d numbers; the
    relation of a head is softmax(A A^T / sqrt(d)). The value is KL(teacher's || student's), mean over heads and tokens.

    Args: student, teacher: [batch, tokens, channels]; the channels may differ, `heads` divides both.
    Returns: nats, [batch].
    Raises: ModelError where batch or tokens differ, or `heads` does not divide the channels.
    Source: Wang et al. 2021, "MiniLMv2", arXiv:2012.15828; for values, MiniLM's value relation, Wang et al. 2020,
    arXiv:2002.10957. Checked against others' descriptions and code: the authors' repository has models alone.
    """
    same_batch(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ModelError(
            f"student's attention is over {student.shape[1]} tokens, the teacher's over {teacher.shape[1]}",
            do="attention relations need models that cut an input into the same tokens; use `hints` between these",
        )
    tables = []
    for vectors in (student, teacher):
        channels = vectors.shape[2]
        if channels % heads:
            raise ModelError(
                f"{heads} relation heads do not divide {channels} channels",
                do="set relation_heads to a divisor of both",
            )
        split = wide(vectors).reshape(*vectors.shape[:2], heads, channels // heads).transpose(1, 2)
        tables.append(split @ split.transpose(2, 3) * (channels // heads) ** -0.5)
    return _divergence(tables[0], tables[1], 1.0).mean((1, 2))


def _divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    log_p, log_q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _same_tokens(student: torch.Tensor, teacher: torch.Tensor) -> None:
    same_batch(student, teacher)
    found = [feature.flatten(2).shape[2] for feature in (student, teacher)]
    if found[0] != found[1]:
        raise ModelError(
            f"student's feature has {found[0]} tokens, the teacher's {found[1]}: expected as many",
            do="resize the larger one by average pooling first",
        )
