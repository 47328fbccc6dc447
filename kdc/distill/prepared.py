"""A teacher of the user's code, made ready to be asked."""

from __future__ import annotations

import torch
from torch import nn

from kdc.distill.input_copies import copy_inputs_if_changed
from kdc.distill.memory_layout import settle_layout


def prepare(model: nn.Module, samples: tuple[torch.Tensor, ...]) -> None:
    """Evaluation mode, no gradients, copies of the inputs if forward() changes them, and the fastest layout that works.

    Args: samples: one tensor [batch, ...] for each of its inputs; they stay as they are.
    """
    model.eval()  # in a line of its own: a `train` of the user's need not return the model
    model.requires_grad_(False)
    copy_inputs_if_changed(model, samples)
    settle_layout(model, samples)
