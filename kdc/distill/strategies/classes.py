"""What strategies for classifiers ask: how many classes there are, and what the labels say as a distribution."""

from __future__ import annotations

import torch
from torch.nn import functional

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.policy import Batch


@torch.no_grad()
def count_classes(kind: str, context: Context) -> int:
    """Classes of the teacher. Raises: ModelError where its outputs are not [batch, classes]."""
    outputs = context.teacher(*(tensor[:2] for tensor in context.data.calibration.inputs))
    if outputs.dim() != 2:
        raise ModelError(
            f"{kind} needs a classifier, outputs [batch, classes]; the teacher gives {tuple(outputs.shape)}",
            do=f"leave {kind} out of training.strategies for this task",
        )
    return int(outputs.shape[1])


def told(batch: Batch, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the labels say of each sample, [batch, classes]: one class, or the two of a mixture in their shares; and
    which samples have a label, bool [batch]. The row of one without a label means nothing.
    """
    target = functional.one_hot(batch.labels.clamp_min(0), classes).to(batch.student.dtype)
    known = batch.labels >= 0
    if batch.others is not None and batch.share is not None:
        other = functional.one_hot(batch.others.clamp_min(0), classes).to(target.dtype)
        target = torch.lerp(other, target, batch.share.to(target.dtype)[:, None])
        known = known & (batch.others >= 0)
    return target, known
