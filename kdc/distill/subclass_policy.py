"""LELP in the loop: a second head of the student learns the pseudo-subclasses of the teacher's embeddings."""

from __future__ import annotations

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.feature_settings import Subclasses
from kdc.distill.heads import HeadTap, outputs_of, refuse_predictions_alone
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.objectives.subclasses import Directions, subclass_directions, subclass_logits
from kdc.distill.policy import Batch, Policy
from kdc.distill.projectors import LinearHead
from kdc.distill.teacher import EVALUATION_BATCH


class _Wide(nn.Module):
    """The student's head of classes * subclasses logits, and the directions that its targets are made by."""

    def __init__(self, head: LinearHead, directions: Directions) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("means", directions.means)
        self.register_buffer("axes", directions.axes)

    @property
    def directions(self) -> Directions:
        return Directions(self.get_buffer("means"), self.get_buffer("axes"))


class SubclassHead(Policy):
    """KL between the subclasses' probabilities of a second head on the student's last features and the teacher's.

    The directions are found once, when the training begins, from the teacher's embeddings of at most `samples` examples of
    the training split, drawn by a generator of this objective's own. In the paper the student keeps the wide head and its
    answer is folded; here the wide head is thrown away after, so that the student stays what it was, and its own head
    learns from the recipe's other objectives.
    """

    runs_teacher = True

    def __init__(self, settings: Subclasses, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        refuse_predictions_alone(context, settings.kind)
        classes = outputs_of(context.teacher, context, settings.kind)
        self._taps = [HeadTap(context.teacher, context, settings.kind)]
        try:
            directions = _directions(settings, self._taps[0], context)
            self._taps.append(HeadTap(student, context, settings.kind))
        except BaseException:
            self.close()
            raise
        generator = context.generator(f"{settings.kind}.head")
        self.wide = _Wide(LinearHead(self._taps[1].width, classes * settings.subclasses, generator), directions)
        self.trained: nn.Module | None = self.wide

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""
        teacher, student = (tap.features for tap in self._taps)
        target = subclass_logits(batch.teacher, teacher.detach(), self.wide.directions, self.settings.sharpness)
        return self.settings.weight * soft_targets(self.wide.head(student), target, self.settings.temperature)

    def close(self) -> None:
        """Leave both models as they were found."""
        for tap in self._taps:
            tap.close()


@torch.no_grad()
def _directions(settings: Subclasses, tap: HeadTap, context: Context) -> Directions:
    train = context.data.train
    order = torch.randperm(len(train), generator=context.generator(f"{settings.kind}.examples"))
    chosen = train[order[: settings.samples].sort().values]
    embeddings = []
    for batch in chosen.batches(EVALUATION_BATCH):
        context.teacher(*batch.inputs)
        embeddings.append(tap.features)
    return subclass_directions(torch.cat(embeddings), chosen.labels, tap.weight.float(), settings.subclasses)
