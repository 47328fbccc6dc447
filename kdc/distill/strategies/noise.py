"""Labels that are often wrong count less than nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.policy import Batch, Policy
from kdc.distill.strategies.balance import balanced, summed
from kdc.distill.strategies.classes import count_classes, told
from kdc.distill.strategy_settings.weights import NoisyLabels


def doubt(target: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How far the teacher is from what the label says: half of sum |target - p|, 0 to 1.

    Args: target: what the label says, [n, classes], a distribution; teacher: logits [n, classes].
    Returns: [n]; for one class a sample, the probability that the teacher gives the other classes.
    """
    return (target - functional.softmax(teacher.float(), 1)).abs().sum(1) / 2


class NoiseRobust(Policy):
    """xi times the losses of the teacher and 1 - xi times those of the labels, with an xi that is never clamped to 1.

    Under strong label noise the best xi is above 1: a teacher that was trained on the same labels is wrong in their
    direction too, and labels with a negative weight take that out of it again. With `by_sample`, xi is times the `doubt`
    of the sample's label, so that labels which the teacher believes keep their weight and the others lose theirs.
    Unlabelled samples have xi = 1.

    With xi above 1 the loss of a sample has no lower bound where the teacher gives its label less than (xi - 1) / xi, for
    there its pull on the label's logit stays negative; training.clip_norm and an end of the training bound it.
    Source: Das & Sanghavi 2023, arXiv:2301.13304; one xi for all samples is theirs, `by_sample` is our choice.
    """

    def __init__(self, settings: NoisyLabels, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        self.classes = count_classes(self.kind, context)

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        summed(losses, self.kind)
        return balanced(losses, self.share(batch))

    def share(self, batch: Batch) -> torch.Tensor:
        """The teacher's share of each sample, [batch], 0 or more."""
        target, known = told(batch, self.classes)
        teacher = batch.teacher.detach()
        xi = self.settings.xi * (
            doubt(target, teacher) if self.settings.by_sample else torch.ones(len(target)).to(target)
        )
        return torch.where(known, xi, torch.ones_like(xi))
