"""Classes weigh as much as the student lacks in them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policy import Batch, Policy
from kdc.distill.strategy_settings.domains import ClassGaps


class WeighedByGap(Policy):
    """What is learnt of the teacher is weighed by the gap of the sample's class, KL(teacher || student) in nats.

    The gaps are moving averages over the steps before; a class's gap moves only when the batch has samples of it. A
    sample without a label is of the teacher's class, a mixed one of its larger part's.
    Source: DDK, Liu et al. 2024, arXiv:2407.16154, as in the abstract: there domains of text are drawn more often where
        the student lacks more, by weights that change smoothly. That classes stand for domains, that samples are weighed
        rather than drawn, and the formula of `weights_of`, are ours.
    """

    def __init__(self, settings: ClassGaps, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        probe = tuple(tensor[:1] for tensor in context.data.train.inputs)
        with torch.no_grad():
            classes = context.teacher(*probe).shape[1]
        memory = nn.Module()
        memory.register_buffer("gaps", torch.full((classes,), torch.nan, dtype=torch.float64))
        self.trained = memory
        self._gaps = memory.get_buffer("gaps")

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        weights = weights_of(self._gaps, self.settings.even)[classes_of(batch)]
        weights = (weights / weights.mean()).float()  # so that the learning rate keeps its meaning
        return {
            policy: values if policy.of_labels else weights.to(values) * values for policy, values in losses.items()
        }

    @torch.no_grad()
    def after(self, batch: Batch) -> None:
        found = soft_targets(batch.student.detach().float(), batch.teacher.float(), 1.0).double()
        classes = classes_of(batch)
        for one in sorted(set(classes.tolist())):
            now, before = found[classes == one].mean(), self._gaps[one].clone()
            momentum = 0.0 if torch.isnan(before) else self.settings.momentum
            self._gaps[one] = momentum * torch.nan_to_num(before) + (1 - momentum) * now


def weights_of(gaps: torch.Tensor, even: float) -> torch.Tensor:
    """even / n + (1 - even) * softmax(gaps / mean gap): they sum to 1 and rise with the gap.

    Args: gaps: >= 0, [n]; NaN where none was seen yet: it counts as the mean. even: 0 to 1.
    Returns: [n].
    """
    seen = gaps[~torch.isnan(gaps)]
    mean = seen.mean() if len(seen) else gaps.new_zeros(())
    filled = torch.where(torch.isnan(gaps), mean, gaps)
    relative = filled / mean.clamp_min(torch.finfo(gaps.dtype).tiny)
    return even / len(gaps) + (1 - even) * functional.softmax(relative, 0)


def classes_of(batch: Batch) -> torch.Tensor:
    """The class that stands for each sample, [batch]."""
    labels = batch.labels
    if batch.others is not None and batch.share is not None:
        labels = torch.where(batch.share >= 0.5, labels, batch.others)
    return torch.where(labels < 0, batch.teacher.argmax(1), labels)
