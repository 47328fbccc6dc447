"""The student learns from what it was itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.copies import bare_copy
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.strategy_settings.history import PastSelf


class PastAnswers(Policy):
    """Cross-entropy with labels softened by the answers of the student as it was when the epoch began.

    The past student answers on the very inputs of the step, so that augmentation does no harm; the paper stores its
    answers of the epoch before instead. In the first epoch there is no past, and the labels stand alone.
    Source: PS-KD, Kim et al. 2021, arXiv:2006.12000, section 3.
    """

    reads_teacher = False
    of_labels = True

    def __init__(self, settings: PastSelf, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student = settings, settings.kind, student
        memory = nn.Module()
        memory.past = bare_copy(student).requires_grad_(False).eval()
        memory.register_buffer("epochs", torch.tensor(-1))
        self.trained = memory
        self._past: nn.Module = memory.past
        self._epochs = memory.get_buffer("epochs")
        self._answers: torch.Tensor | None = None

    def begin(self, epoch: int) -> None:
        self._past.load_state_dict(self.student.state_dict())
        self._epochs.fill_(epoch)

    @torch.no_grad()
    def change(self, drawn: Drawn) -> Drawn:
        self._answers = functional.softmax(self._past(*drawn.inputs).float(), 1) if self._epochs > 0 else None
        return drawn

    def loss(self, batch: Batch) -> torch.Tensor:
        logits = batch.student
        target = functional.one_hot(batch.labels.clamp_min(0), logits.shape[1]).to(logits.dtype)
        if batch.others is not None and batch.share is not None:
            other = functional.one_hot(batch.others.clamp_min(0), logits.shape[1]).to(logits.dtype)
            target = torch.lerp(other, target, batch.share.to(logits.dtype)[:, None])
        if self._answers is not None:
            target = torch.lerp(target, self._answers, self.settings.share * batch.progress)
        known = batch.labels >= 0 if batch.others is None else (batch.labels >= 0) & (batch.others >= 0)
        return (
            self.settings.weight * known.to(logits.dtype) * functional.cross_entropy(logits, target, reduction="none")
        )
