"""Outputs of a model over a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split

EVALUATION_BATCH = 250


@torch.no_grad()
def predict(model: nn.Module, split: Split, report: Callable[[int, int], None] | None = None) -> torch.Tensor:
    """The model's outputs over a split, float32 [n, ...] on the CPU, in evaluation mode; the mode is left as it was.

    The model is asked where its weights are.
    """
    training = model.training
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    model.eval()
    outputs: list[torch.Tensor] = []
    done = 0
    for batch in split.batches(EVALUATION_BATCH):
        outputs.append(model(*(tensor.to(device) for tensor in batch.inputs)).float().cpu())
        done += len(batch)
        if report is not None:
            report(done, len(split))
    model.train(training)
    return torch.cat(outputs)


def points(outputs: torch.Tensor, split: Split, context: Context) -> float:
    """The task's headline metric of these outputs, in points."""
    scores: np.ndarray[Any, Any] = context.task.scores(outputs.numpy(), split.labels.numpy())
    return 100.0 * float(scores.mean())


def reached(model: nn.Module, context: Context) -> float:
    """The task's headline metric of the model on the validation split, in points."""
    split = context.data.validation
    return points(predict(model, split), split, context)


def taught_by(context: Context, model: nn.Module) -> Context:
    """The same context with another teacher, in evaluation mode and frozen; its answers are kept by its own digest."""
    return replace(context, teacher=model.eval().requires_grad_(False))
