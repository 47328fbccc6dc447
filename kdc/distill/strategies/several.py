"""Several teachers' answers made into one target, before the objectives see it."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.policy import Drawn, Policy
from kdc.distill.several import (
    all_answers,
    by_confidence,
    by_entropy,
    label_costs,
    mean_of_logits,
    mean_of_probabilities,
    several,
)
from kdc.distill.strategy_settings.several import Combined


class CombinedTarget(Policy):
    """The weighted mean of the teachers' probabilities or logits stands for the teacher."""

    def __init__(self, settings: Combined, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.context = settings, settings.kind, context
        several(context, self.kind)

    def change(self, drawn: Drawn) -> Drawn:
        stack = all_answers(drawn, self.context, self.kind)
        weights = self._weights(stack, drawn)
        if self.settings.mean_of == "logits":
            target = mean_of_logits(stack, weights)
        else:
            target = mean_of_probabilities(stack, weights, self.settings.temperature)
        return dataclasses.replace(drawn, teacher=target)

    def _weights(self, stack: torch.Tensor, drawn: Drawn) -> torch.Tensor | None:
        match self.settings.weights:
            case "confidence":
                return by_confidence(label_costs(stack, drawn))
            case "entropy":
                return by_entropy(stack)
            case _:
                return None
