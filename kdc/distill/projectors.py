"""Modules that stand between two models while one learns from the other; they train along and are thrown away after.

None of them is ever part of the student: they are called on its features, so that there is nothing to take out of it
before it is exported. Their first weights are drawn from a named generator.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from kdc.distill.objectives.shapes import directions

ProjectorKind = Literal["orthogonal", "linear"]
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class LinearProjector(nn.Module):
    """A linear map over channels, the same at every position."""

    def __init__(self, channels_in: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn((channels, channels_in), generator=generator) * channels_in**-0.5)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, ...] -> [batch, channels, ...]."""
        return torch.einsum("oi,bi...->bo...", self.weight, feature)


class LinearHead(nn.Module):
    """A linear layer with its bias, whose first weights are a generator's and whose first bias is 0."""

    def __init__(self, channels_in: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn((channels, channels_in), generator=generator) * channels_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[..., channels_in] -> [..., channels]."""
        return F.linear(feature, self.weight, self.bias)


class OrthogonalProjector(nn.Module):
    """A linear map over channels whose weight has orthonormal columns (rows, where the teacher is narrower).

    The weight is the Q of the QR decomposition of a free matrix, with R's diagonal positive: that Q is unique and smooth,
    so any optimizer's step, weight decay too, leaves it orthonormal to rounding. Before each forward in training the free
    matrix is set to its Q: left to itself it drifts towards a singular one, where Q stops to follow the gradient.
    Source: Miles et al. 2024, "VkD", arXiv:2403.06213 (the constraint; the parametrisation is ours).
    """

    def __init__(self, channels_in: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        tall = max(channels_in, channels), min(channels_in, channels)
        self.free = nn.Parameter(torch.randn(tall, generator=generator) * tall[0] ** -0.5)
        self.widens = channels >= channels_in

    @property
    def weight(self) -> torch.Tensor:
        """[channels, channels_in]."""
        q = self._q()
        return q if self.widens else q.T

    def _q(self) -> torch.Tensor:
        q, r = torch.linalg.qr(self.free)
        positive: torch.Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
        return positive

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, ...] -> [batch, channels, ...]."""
        if self.training:
            with torch.no_grad():
                self.free.copy_(self._q())
        return torch.einsum("oi,bi...->bo...", self.weight, feature)


def projector(kind: ProjectorKind, channels_in: int, channels: int, generator: torch.Generator) -> nn.Module:
    """From the student's channels to the teacher's."""
    made = OrthogonalProjector if kind == "orthogonal" else LinearProjector
    return made(channels_in, channels, generator)


class Recovery(nn.Module):
    """The teacher's feature out of the student's with some channels masked: a linear map and two convolutions of 3.

    Source: Yang et al. 2022, "Masked Generative Distillation", arXiv:2205.01529; as in the authors' code for classifiers.
    """

    def __init__(
        self, channels_in: int, channels: int, positions: int, masked: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.masked = masked
        self.align = LinearProjector(channels_in, channels, generator)
        kernel = (channels, channels, *[3] * positions)
        size = (channels * 3**positions) ** -0.5
        self.first = nn.Parameter(torch.randn(kernel, generator=generator) * (2**0.5 * size))
        self.second = nn.Parameter(torch.randn(kernel, generator=generator) * size)
        self._convolve = _CONVOLUTIONS[positions]

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, *positions] -> [batch, channels, *positions]; masks by the loop's seed of the step."""
        aligned = self.align(feature)
        shape = (*aligned.shape[:2], *[1] * (aligned.dim() - 2))
        kept = torch.rand(shape, device=feature.device) >= self.masked
        hidden = self._convolve(aligned * kept, self.first, padding=1).relu()
        return self._convolve(hidden, self.second, padding=1)


class CrossAttentionProjector(nn.Module):
    """A student's features seen from the teacher's positions: learned queries, one a position, attend to all of them.

    Each head: softmax(Q K^T / sqrt(d)) V with Q a linear map of the queries, K and V linear maps of the student's feature
    plus a learned code of its position; then a linear map, a LayerNorm and a feed-forward of four times the width.
    Source: Fan et al. 2024, "ScaleKD", arXiv:2411.06786; as in the authors' code (`AttentionProjector`), but that its
    convolution before the attention is left out, so that maps and tokens are treated alike.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        positions_in: tuple[int, ...],
        positions: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.positions, self.channels = positions, channels
        self.heads = max(heads for heads in range(1, 9) if channels % heads == 0)
        self.place = nn.Parameter(torch.zeros(channels_in, math.prod(positions_in)))
        self.queries = nn.Parameter(torch.randn((math.prod(positions), channels), generator=generator))
        self.q, self.out = (LinearHead(channels, channels, generator) for _ in range(2))
        self.k, self.v = (LinearHead(channels_in, channels, generator) for _ in range(2))
        self.norm = nn.LayerNorm(channels)
        self.widen, self.narrow = (
            LinearHead(channels, 4 * channels, generator),
            LinearHead(4 * channels, channels, generator),
        )

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """[batch, channels_in, *positions_in] -> [batch, channels, *positions]."""
        tokens = (feature.flatten(2) + self.place).transpose(1, 2)
        q, k, v = (self._split(part) for part in (self.q(self.queries.unsqueeze(0)), self.k(tokens), self.v(tokens)))
        seen = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v
        hidden = self.norm(self.out(seen.transpose(1, 2).flatten(2)))
        made: torch.Tensor = hidden + self.narrow(self.widen(hidden).relu())
        return made.transpose(1, 2).reshape(len(made), self.channels, *self.positions)

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class LipschitzCritic(nn.Module):
    """Scores of all pairs of a batch that never change faster than their features: f(t, s) = v . relu(W relu(U [t; s])).

    With biases, and every matrix divided by its largest singular value, so that f is 1-Lipschitz in the pair of features
    whatever an optimizer does to the weights. Features are scaled to length 1 before.
    Source: spectral normalisation, Miyato et al. 2018, arXiv:1802.05957, by the exact singular value; layers are ours.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.pair, self.hidden = LinearHead(2 * width, width, generator), LinearHead(width, width, generator)
        self.score = LinearProjector(width, 1, generator)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, width] each -> scores [batch (teacher's), batch (student's)]."""
        s, t = directions(student, 1), directions(teacher, 1)
        of_teacher, of_student = _slope_1(self.pair.weight).chunk(2, 1)
        first = (F.linear(t, of_teacher).unsqueeze(1) + F.linear(s, of_student).unsqueeze(0) + self.pair.bias).relu()
        second = F.linear(first, _slope_1(self.hidden.weight), self.hidden.bias).relu()
        return F.linear(second, _slope_1(self.score.weight)).squeeze(2)


def _slope_1(weight: torch.Tensor) -> torch.Tensor:
    largest: torch.Tensor = torch.linalg.matrix_norm(weight, 2)
    return weight / largest


class Critic(nn.Module):
    """Scores of all pairs of a batch, and a baseline of the teacher's features, for bounds of mutual information.

    f(t, s) = v . relu(W relu(A t + B s + c) + d), log q(t) = u . relu(C t + e).
    """

    def __init__(self, student: int, teacher: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.of_student = LinearProjector(student, width, generator)
        self.of_teacher = LinearProjector(teacher, width, generator)
        self.first, self.second = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.hidden = LinearProjector(width, width, generator)
        self.score = LinearProjector(width, 1, generator)
        self.baseline, self.third = LinearProjector(teacher, width, generator), nn.Parameter(torch.zeros(width))
        self.log_q = LinearProjector(width, 1, generator)

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[batch, student], [batch, teacher] -> scores [batch (teacher's), batch (student's)], log baseline [batch]."""
        pairs = self.of_teacher(teacher).unsqueeze(1) + self.of_student(student).unsqueeze(0) + self.first
        hidden = (self.hidden(pairs.relu().flatten(0, 1)) + self.second).relu()
        scores = self.score(hidden).reshape(len(teacher), len(student))
        return scores, self.log_q((self.baseline(teacher) + self.third).relu()).squeeze(1)
