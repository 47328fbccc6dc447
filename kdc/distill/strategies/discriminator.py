"""A small network that tells the student's outputs from the teacher's, and a student that learns to be taken for it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.objectives.distributions import log_probabilities, matched
from kdc.distill.policy import Batch, Policy
from kdc.distill.projectors import LinearProjector
from kdc.distill.strategy_settings.discriminator import Discriminator

_FLOOR = -30.0  # log-probabilities below it tell no more, and would drown the others


class OutputDiscriminator(Policy):
    """-(log D(t) + log(1 - D(s))) / 2 for each sample, which D minimises and the student, its gradient reversed, maximises.

    D sees log-probabilities, so that it cannot tell the two by a shift of their logits, which means nothing.
    Source: MEAL V2, Shen & Savvides 2020, arXiv:2009.08453: a discriminator of three layers on the final outputs
    only. Its official code feeds logits, has a rectified last layer, and adds the discriminator's loss to the student's
    without reversing it, so that there the student helps to be told apart; here it is the adversary that the paper names.
    Reversal as in Ganin & Lempitsky 2015, arXiv:1409.7495.
    """

    def __init__(self, settings: Discriminator, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        with torch.no_grad():
            outputs = context.teacher(*(tensor[:2] for tensor in context.data.calibration.inputs))
        classes = int(outputs.shape[-1])
        widths = [classes, max(8, classes // settings.reduction), max(8, classes // settings.reduction**2), 1]
        self.judge = Judge(widths, context.generator(self.kind))
        self.trained: nn.Module | None = self.judge

    def loss(self, batch: Batch) -> torch.Tensor:
        student, teacher = matched(batch.student, batch.teacher)
        if student.dim() != 2:
            raise ModelError(
                f"{self.kind} needs a classifier, outputs [batch, classes]; the student gives {list(student.shape)}",
                do=f"leave {self.kind} out of training.strategies for this task",
            )
        of_student = self.judge(reversed_gradient(log_probabilities(student, 1.0).clamp_min(_FLOOR)))
        of_teacher = self.judge(log_probabilities(teacher, 1.0).clamp_min(_FLOOR))
        return self.settings.weight * (functional.softplus(of_student) + functional.softplus(-of_teacher)) / 2


class Judge(nn.Module):
    """Three linear layers with rectifiers between: [batch, classes] -> the log-odds of being the teacher's, [batch]."""

    def __init__(self, widths: list[int], generator: torch.Generator) -> None:
        super().__init__()
        steps = list(itertools.pairwise(widths))
        self.layers = nn.ModuleList(LinearProjector(a, b, generator) for a, b in steps)
        self.biases = nn.ParameterList(torch.zeros(b) for _, b in steps)

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        hidden = outputs
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden.relu() if i else hidden) + self.biases[i]
        return hidden.squeeze(1)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return -gradients[0]


def reversed_gradient(values: torch.Tensor) -> torch.Tensor:
    """The values as they are; their gradient is turned round."""
    made: torch.Tensor = _Reversed.apply(values)  # type: ignore[no-untyped-call]
    return made
