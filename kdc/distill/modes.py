"""A model in evaluation mode for a while, or in one that gradients pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after it every module is in the mode in which it was, those kept frozen too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, through which the gradients of inputs pass: layers that round let them straight through.

    Such a layer has a switch `straight_through`; without it nothing could be found of a quantized model by gradients, for
    the slope of rounding is 0. What rounding gives stays as it is.
    Source: Bengio et al. 2013, arXiv:1308.3432 (the straight-through estimator); Athalye et al. 2018, arXiv:1802.00420,
    section 4.1 (that an attack is to replace what has no useful gradient in its backward pass).
    """
    switched = [module for module in model.modules() if getattr(module, "straight_through", None) is False]
    with evaluating(model):
        for module in switched:
            module.straight_through = True  # type: ignore[assignment]
        try:
            yield
        finally:
            for module in switched:
                module.straight_through = False  # type: ignore[assignment]
