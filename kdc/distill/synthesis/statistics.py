"""How far what a model's BatchNorms see is from what they saw in training: the data's trace in the weights."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel over the batch and all positions.

    Args: features: [batch, channels, ...].
    Returns: mean and variance, [channels] each.
    """
    rows = features.transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, unbiased=False)


def statistics_distance(features: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor) -> torch.Tensor:
    """|mean(features) - running_mean| + |var(features) - running_var|, both in the Euclidean norm over channels.

    Args: features: [batch, channels, ...]; running_mean, running_var: [channels].
    Returns: one number of the batch: statistics have no value per example.
    Source: Yin et al. 2020, arXiv:1912.08795, section 3.2; the norms are not squared, as in the authors' code.
    """
    mean, variance = moments(features)
    distances: list[torch.Tensor] = [
        torch.linalg.vector_norm(seen - running) for seen, running in ((mean, running_mean), (variance, running_var))
    ]
    return distances[0] + distances[1]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The model's BatchNorms that keep running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    ]


class WatchedStatistics:
    """The distances of every BatchNorm of one model in its last forward; the hooks go with the block."""

    def __init__(self, model: nn.Module) -> None:
        self._distances: list[torch.Tensor] = []
        self.count = len(norms := batch_norms(model))
        self._handles = [norm.register_forward_pre_hook(self._see) for norm in norms]

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        mean, variance = module.get_buffer("running_mean"), module.get_buffer("running_var")
        self._distances.append(statistics_distance(inputs[0], mean, variance))

    def taken(self, first: float = 1.0) -> torch.Tensor:
        """The sum of the distances since the last call, that of the first BatchNorm `first` times; 0 without any."""
        distances, self._distances = self._distances, []
        return sum((distance for distance in distances[1:]), first * distances[0]) if distances else torch.zeros(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
