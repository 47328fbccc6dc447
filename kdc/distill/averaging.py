"""The moving average of the student's weights, which is what a training gives, and the best of its states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn


class Average:
    """Exponential moving average of a model's state: weights and floating buffers; other buffers are the latest."""

    def __init__(self, model: nn.Module, frozen: Sequence[nn.Module], decay: float) -> None:
        self.model, self.decay = model, decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        # The mean of equal numbers need not be the number to the bit: that of -0.0 is 0.0.
        still = {id(tensor) for module in frozen for tensor in module.state_dict(keep_vars=True).values()}
        live = model.state_dict(keep_vars=True)
        self._moving = [name for name, tensor in live.items() if id(tensor) not in still]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model as it is after this step, the first of which is 0."""
        # The decay grows with the steps, else the average of a short training is still its first weights.
        decay = min(self.decay, (1 + step) / (10 + step))
        state = self.model.state_dict()
        for name in self._moving:
            tensor = state[name]
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go on with what `state` was."""
        for name, tensor in tensors.items():
            self.state[name].copy_(tensor)


class Best:
    """The state with the best metric so far, the latest of equals; None before the first."""

    def __init__(self) -> None:
        self.metric = -math.inf
        self.state: dict[str, torch.Tensor] | None = None

    def take(self, metric: float, state: Mapping[str, torch.Tensor]) -> None:
        """Keep a copy of the state where no other was better."""
        if metric >= self.metric:
            self.metric = metric
            self.state = {name: tensor.detach().clone() for name, tensor in state.items()}
