"""What is checked of a teacher when it is loaded, before any time is spent on it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from kdc.core.contract import named_seed
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.distill.synthesis.domain import domains_of
from kdc.driver.batch_check import BATCH, check_batches, distinct
from kdc.driver.gradient_check import check_gradients

SAMPLES = BATCH + BATCH // 2  # a batch, and other company for half of it


def check_teacher(model: nn.Module, samples: tuple[torch.Tensor, ...], where: str) -> None:
    """Hold a teacher to what kdc counts on. Each check has a file of its own.

    Args: model: in evaluation mode, its inputs copied if it changes them; it is left as it is. samples: unlike each other,
        one tensor [n, ...] for each of its inputs. where: how messages call it.
    Raises: ModelError that names the module or the user's line.
    """
    try:
        tried = copy.deepcopy(model)
    except (TypeError, RuntimeError, copy.Error) as error:
        raise ModelError(
            f"{where}: the model cannot be copied: {type(error).__name__}: {error}",
            do="keep locks, open files and computed tensors out of the module's attributes",
        ) from error
    check_batches(tried, samples, where)
    check_gradients(model, tuple(tensor[:BATCH] for tensor in samples), where)


def samples_of(
    seen: Split | None, inputs: tuple[TensorSpec, ...], limits: tuple[float, float] | None, seed: int
) -> tuple[torch.Tensor, ...]:
    """A few samples, unlike each other, one tensor [n, ...] for each input.

    Args: seen: the data; None: there are none, and normal noise within the limits stands for them.
    Raises: ModelError where there are none, and the inputs are such that none can be made.
    """
    generator = torch.Generator().manual_seed(named_seed(seed, "teacher checks"))
    if seen is not None:
        return distinct(seen.inputs, SAMPLES, generator)
    domains = domains_of(inputs, limits)
    return tuple(domain.scaled(torch.randn((SAMPLES, *domain.shape), generator=generator)) for domain in domains)
