"""A second head beside the student's own while it learns: a loss on logits trains it, and it is thrown away after.

A loss that sees logits class by class and one that sees probabilities pull one linear head apart, but agree on what the
layers before it should be (Yang et al. 2024, Dual-Head KD, arXiv:2411.08937). So each gets a head of its own.
"""

from __future__ import annotations

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.feature_settings import DualHead
from kdc.distill.heads import HeadTap, outputs_of
from kdc.distill.logit_settings import Binary
from kdc.distill.objectives.binary import binary, binary_norm
from kdc.distill.policy import Batch, Policy
from kdc.distill.projectors import LinearHead


class SecondHead(Policy):
    """Dual-Head KD: the logit-level loss of a second linear head on what the student's classifier takes.

    The gradient reaches the layers before the classifier and never the classifier itself. The second head has as many
    outputs as the teacher, so that the student's own classes may be others.
    Source: Yang et al. 2024, arXiv:2411.08937; the linear head and BinaryKL-Norm as in its official code
    (penghui-yang/DHKD), whose alignment of the two gradients (`--ga`) is left out.
    """

    def __init__(self, settings: DualHead, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        classes = outputs_of(context.teacher, context, settings.kind)
        self._tap = HeadTap(student, context, settings.kind)
        self.head = LinearHead(self._tap.width, classes, context.generator(f"{settings.kind}.head"))
        self.trained: nn.Module | None = self.head

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""
        logits, loss = self.head(self._tap.features), self.settings.loss
        if isinstance(loss, Binary):
            values = binary(logits, batch.teacher, loss.focus)
        else:
            values = binary_norm(logits, batch.teacher, loss.temperature)
        return self.settings.weight * loss.weight * values

    def close(self) -> None:
        """Leave the student as it was found."""
        self._tap.close()
