"""TED: layers compared by what of them the task needs, as filters that were trained on the task let it through."""

from __future__ import annotations

import torch
from torch import nn

from kdc.core.contract import Task
from kdc.distill.feature_policy import Features, Part
from kdc.distill.feature_settings import FeatureObjective, Paired, TaskAware
from kdc.distill.heads import outputs_of
from kdc.distill.objectives.shapes import wide
from kdc.distill.pairing import Pair
from kdc.distill.policy import Batch
from kdc.distill.projectors import LinearHead


class Filters(nn.Module):
    """A linear filter for each of two layers, and a head on each filter's mean over positions that answers the task."""

    def __init__(self, pair: Pair, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.student = LinearHead(pair.student.channels, width, generator)
        self.teacher = LinearHead(pair.teacher.channels, width, generator)
        self.heads = nn.ModuleList(LinearHead(width, classes, generator) for _ in range(2))

    def task(self, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, task: Task) -> torch.Tensor:
        """Sum of both heads' task losses, [batch]; nothing flows back into either model."""
        features = self.student(_tokens(student).detach()), self.teacher(_tokens(teacher).detach())
        answers = [head(feature.mean(1)) for head, feature in zip(self.heads, features, strict=True)]
        known, named = labels >= 0, labels.clamp_min(0)
        losses: torch.Tensor = known * (task.loss(answers[0], named) + task.loss(answers[1], named))
        return losses

    def apart(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Mean squared difference of the filtered features, [batch]; the teacher's filter stays as it is."""
        with torch.no_grad():
            target = self.teacher(_tokens(teacher))
        difference: torch.Tensor = self.student(_tokens(student)) - target
        return difference.square().mean((1, 2))


class TaskFilters(Features):
    """TED in one training: filters learn the task for the first `filters` of the steps, then filtered layers are matched.

    In the first part each layer's filter and head learn the task's loss, with both models' features taken as they are; the
    student learns from the recipe's other objectives meanwhile. In the second the teacher's filters are fixed, and the
    student learns to give, through its own filters, what the teacher gives through its. The weight is of this part alone.
    Source: Liang et al. 2023, "Less is More: Task-aware Layer-wise Distillation", arXiv:2210.01351; linear filters, heads
    and mean squared difference as in the authors' code (cliang1453/task-aware-distillation), whose first part is a
    training of its own with the student's weights fixed.
    """

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch]; weighted in the second part."""
        values = torch.stack([part(batch) for part in self._parts]).mean(0)
        return values if self._filters_learn(batch) else self.settings.weight * values

    def _filters_learn(self, batch: Batch) -> bool:
        assert isinstance(self.settings, TaskAware)
        return batch.progress < float(self.settings.filters)

    def _made(self, settings: FeatureObjective) -> list[Part]:
        assert isinstance(settings, TaskAware)
        found = self._paired(settings, settings.pairs)
        return self._compared(settings, found)

    def _compared(self, settings: Paired, found: list[Pair]) -> list[Part]:
        assert isinstance(settings, TaskAware)
        generator, task = self.context.generator(f"{self.kind}.filters"), self.context.task
        classes = outputs_of(self.student, self.context, self.kind)
        made = [Filters(pair, settings.width or pair.teacher.channels, classes, generator) for pair in found]
        self._modules = [*made]
        student, teacher = self._tap([p.student for p in found], [p.teacher for p in found])

        def part(pair: Pair, filters: Filters) -> Part:
            def values(batch: Batch) -> torch.Tensor:
                features = pair.aligned(student[pair.student.path], teacher[pair.teacher.path])
                if self._filters_learn(batch):
                    return filters.task(*features, batch.labels, task)
                return filters.apart(*features)

            return values

        return [part(pair, filters) for pair, filters in zip(found, made, strict=True)]


def _tokens(feature: torch.Tensor) -> torch.Tensor:
    """[batch, channels, *positions] -> [batch, positions, channels]."""
    return wide(feature).flatten(2).transpose(1, 2)
