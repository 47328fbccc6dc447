"""DeepInversion: a batch of inputs optimised from noise until the teacher takes it for samples of given classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.distill.synthesis.domain import REACH, Domain
from kdc.distill.synthesis.settings import InversionSettings
from kdc.distill.synthesis.statistics import WatchedStatistics
from kdc.distill.synthesis.terms import total_variation


def invert(
    teacher: nn.Module,
    domains: Sequence[Domain],
    classes: torch.Tensor,
    settings: InversionSettings,
    generator: torch.Generator,
    report: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, ...]:
    """Inputs that the teacher takes for samples of these classes.

    min over x of  mean cross_entropy(teacher(x), classes)
        + batch_norm * sum over BatchNorms of (|mean - running_mean| + |variance - running_var|)
        + total_variation * mean TV(x) + l2 * mean |x|

    by Adam, whose rate falls on a cosine. TV and the norm are of x in standard deviations, so that they mean the same
    at any scale; jitter and flip change what the teacher sees at one step, and not x.

    Args: teacher: in evaluation mode; it is left as it is. domains: its inputs. classes: class numbers, [batch].
        generator: of the noise, the jitter and the flips. report: called after each step.
    Returns: one tensor [batch, ...] for each input. With `limits` they lie within.
    Raises: ModelError where the loss is no longer finite.
    Source: Yin et al. 2020, arXiv:1912.08795, section 3.2, and the authors' code (NVlabs/DeepInversion).
    """
    standard = [torch.randn((len(classes), *domain.shape), generator=generator) for domain in domains]
    standard = [_within(tensor, domain).requires_grad_() for tensor, domain in zip(standard, domains, strict=True)]
    optimizer = torch.optim.Adam(standard, lr=settings.learning_rate)
    with WatchedStatistics(teacher) as statistics:
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            seen = [_disturbed(tensor, settings, generator) for tensor in standard]
            inputs = [domain.scaled(tensor) for tensor, domain in zip(seen, domains, strict=True)]
            loss = functional.cross_entropy(teacher(*inputs).float(), classes)
            loss = loss + settings.batch_norm * statistics.taken(settings.first_batch_norm)
            for tensor in seen:
                loss = loss + settings.total_variation * total_variation(tensor).mean()
                loss = loss + settings.l2 * torch.linalg.vector_norm(tensor.flatten(1), dim=1).mean()
            if not torch.isfinite(loss):
                raise ModelError(
                    f"data.synthesise: the loss is {loss.item()} at step {step} of {settings.steps}",
                    do=f"set a lower learning_rate than {settings.learning_rate:g}, or limits for the inputs",
                )
            # By `grad`, not `backward`: a teacher whose weights ask for gradients gets none.
            for tensor, gradient in zip(standard, torch.autograd.grad(loss, standard), strict=True):
                tensor.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for tensor, domain in zip(standard, domains, strict=True):
                    tensor.copy_(_within(tensor, domain))
            report()
    return tuple(domain.scaled(tensor.detach()) for tensor, domain in zip(standard, domains, strict=True))


def _within(standard: torch.Tensor, domain: Domain) -> torch.Tensor:
    return standard if domain.limits is None else standard.clamp(-REACH, REACH)


def _disturbed(tensor: torch.Tensor, settings: InversionSettings, generator: torch.Generator) -> torch.Tensor:
    """Every position moved by the same draw, around the edges; the last axis mirrored every second time or so."""
    axes = tuple(range(2, tensor.dim()))
    if not axes:
        return tensor
    if settings.jitter:
        reach = settings.jitter
        moves = torch.randint(-reach, reach + 1, (len(axes),), generator=generator).tolist()
        tensor = torch.roll(tensor, moves, axes)
    if settings.flip and torch.rand((), generator=generator) < 0.5:
        tensor = tensor.flip(-1)
    return tensor
