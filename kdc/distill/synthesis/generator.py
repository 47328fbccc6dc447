"""DAFL's generator: a small network whose samples the teacher is sure of, active on, and spread over its classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from kdc.core.contract import named_seed
from kdc.core.errors import ModelError
from kdc.distill.synthesis.domain import REACH, Domain
from kdc.distill.synthesis.settings import GeneratorSettings
from kdc.distill.synthesis.statistics import WatchedStatistics
from kdc.distill.synthesis.terms import activation, information_entropy, one_hot

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_EPSILON = 0.8  # of the inner BatchNorms, as in the authors' code: they leave quiet channels quiet
_SLOPE = 0.2


class Generator(nn.Module):
    """Random numbers [batch, latent] -> one tensor [batch, ...] for each of a teacher's inputs.

    Its last layer is a BatchNorm without weights: each channel has mean 0 and variance 1 over a batch, as inputs that
    were standardised have. With limits, a tanh fills them in its place.
    """

    def __init__(self, domains: Sequence[Domain], latent: int, width: int) -> None:
        super().__init__()
        self.domains = tuple(domains)
        self.trunks = nn.ModuleList(_trunk(domain.shape, latent, width) for domain in domains)
        self.norms = nn.ModuleList(nn.Identity() if d.limits is not None else _last_norm(d.shape) for d in domains)

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = []
        for domain, trunk, norm in zip(self.domains, self.trunks, self.norms, strict=True):
            standard = norm(torch.tanh(trunk(latent)))
            reach = 1.0 if domain.limits is None else REACH
            found.append(domain.scaled(reach * standard).reshape(len(latent), *domain.shape))
        return tuple(found)


class _Spread(nn.Module):
    """Nearest neighbours: [batch, channels, ...] -> the given positions."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(maps, self.size)


def _trunk(shape: tuple[int, ...], latent: int, width: int) -> nn.Sequential:
    """Of maps with one to three axes of positions: a linear layer, and twice as many positions twice. Else a perceptron."""
    axes = len(shape) - 1
    if axes not in _CONVOLUTIONS:
        return nn.Sequential(
            *(nn.Linear(latent, width), nn.BatchNorm1d(width, _EPSILON), nn.LeakyReLU(_SLOPE)),
            *(nn.Linear(width, width), nn.BatchNorm1d(width, _EPSILON), nn.LeakyReLU(_SLOPE)),
            nn.Linear(width, math.prod(shape)),
        )
    convolution, norm = _CONVOLUTIONS[axes], _NORMS[axes]
    quarter, half = (tuple(math.ceil(size / part) for size in shape[1:]) for part in (4, 2))
    narrow = max(1, width // 2)
    return nn.Sequential(
        *(nn.Linear(latent, width * math.prod(quarter)), nn.Unflatten(1, (width, *quarter)), norm(width)),
        *(_Spread(half), convolution(width, width, 3, padding=1), norm(width, _EPSILON), nn.LeakyReLU(_SLOPE)),
        *(_Spread(shape[1:]), convolution(width, narrow, 3, padding=1), norm(narrow, _EPSILON), nn.LeakyReLU(_SLOPE)),
        convolution(narrow, shape[0], 3, padding=1),
    )


def _last_norm(shape: tuple[int, ...]) -> nn.Module:
    axes = len(shape) - 1
    if axes not in _CONVOLUTIONS:
        return nn.BatchNorm1d(math.prod(shape), affine=False)
    return _NORMS[axes](shape[0], affine=False)


def train_generator(
    teacher: nn.Module,
    domains: Sequence[Domain],
    settings: GeneratorSettings,
    seed: int,
    report: Callable[[], None] = lambda: None,
) -> Generator:
    """A generator G trained against the teacher T by Adam, whose rate falls on a cosine.

    min over G of  one_hot * mean one_hot(T(G(z))) + activation * mean activation(features)
        + information_entropy * information_entropy(T(G(z))) + batch_norm * distance to the running statistics

    with z standard normal. Features are what comes in at the last linear or convolutional layer of the teacher that a
    forward runs; the second term is 0 for a teacher without one.

    Args: teacher: in evaluation mode; it is left as it is. report: called after each step.
    Raises: ModelError where the loss is no longer finite.
    Source: Chen et al. 2019, arXiv:1904.01186, section 3.2, and the authors' code (huawei-noah/Efficient-Computing).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "synthesis", "weights"))
        made = Generator(domains, settings.latent, settings.width).train()
    draws = torch.Generator().manual_seed(named_seed(seed, "synthesis", "training"))
    weights = list(made.parameters())
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate)
    with _Head(teacher) as head, WatchedStatistics(teacher) as statistics:
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            inputs = made(torch.randn((settings.batch, settings.latent), generator=draws))
            logits = teacher(*inputs).float()
            loss = settings.one_hot * one_hot(logits).mean()
            loss = loss + settings.information_entropy * information_entropy(logits)
            loss = loss + settings.batch_norm * statistics.taken()
            if head.features is not None:
                loss = loss + settings.activation * activation(head.features.float()).mean()
            if not torch.isfinite(loss):
                raise ModelError(
                    f"data.synthesise: the generator's loss is {loss.item()} at step {step} of {settings.steps}",
                    do=f"set a lower learning_rate than {settings.learning_rate:g}",
                )
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            optimizer.step()
            report()
    return made


@torch.no_grad()
def drawn(generator: Generator, count: int, latent: int, draws: torch.Generator) -> tuple[torch.Tensor, ...]:
    """`count` samples at once, normalised over themselves as in the generator's training."""
    return generator.train()(torch.randn((count, latent), generator=draws))  # type: ignore[no-any-return]


class _Head:
    """What came in at the last linear or convolutional layer that ran; the hooks go with the block."""

    def __init__(self, model: nn.Module) -> None:
        self.features: torch.Tensor | None = None
        layers = [module for module in model.modules() if isinstance(module, nn.Linear | _ConvNd)]
        self._handles = [layer.register_forward_pre_hook(self._see) for layer in layers]

    def _see(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.features = inputs[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.features = None
        for handle in self._handles:
            handle.remove()
