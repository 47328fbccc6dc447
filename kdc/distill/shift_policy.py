"""Delta-KD in the loop: the student is to be shifted from its beginnings as the teacher was from its own."""

from __future__ import annotations

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.copies import bare_copy
from kdc.distill.objectives.moving import delta_kd
from kdc.distill.policy import Batch, Policy
from kdc.distill.predict_only import asked_only
from kdc.distill.shift_settings import Shifted
from kdc.distill.sources import load_source


class ShiftedTarget(Policy):
    """`delta_kd` of the batch. Both bases are frozen, in evaluation mode, and run on the very inputs of the batch.

    They are in no checkpoint, for nothing moves them: a training that goes on after a kill is given the student as it was
    at first, and its checkpoint is loaded into it later.
    """

    def __init__(self, settings: Shifted, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        self.teacher_base = load_source(settings.teacher_base, context)
        if settings.student_base == "start":
            self.student_base: nn.Module = bare_copy(student).requires_grad_(False).eval()
        else:
            self.student_base = load_source(settings.student_base, context)

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch], weighted."""
        student_base = self._asked("student", batch.student, batch)
        teacher_base = self._asked("teacher", batch.teacher, batch)
        values = delta_kd(batch.student, student_base, batch.teacher, teacher_base, self.settings.strength)
        return self.settings.weight * values

    @torch.no_grad()
    def _asked(self, whose: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The base's answers, in the shape of those of the model that it was a base of."""
        base = self.student_base if whose == "student" else self.teacher_base
        base.to(batch.inputs[0].device)
        answers: torch.Tensor = base(*batch.inputs)
        if answers.shape != outputs.shape:
            raise ModelError(
                f"{self.kind}: {whose}_base answers {list(answers.shape)}, the {whose} {list(outputs.shape)}; what changed "
                "between the two is taken class by class",
                do=f"name a model with the {whose}'s classes, in their order, such as an earlier checkpoint of it",
            )
        return answers.to(outputs.device)

    def close(self) -> None:
        """Let go of bases that are loaded when they are asked."""
        for base in (self.student_base, self.teacher_base):
            for part in asked_only(base):
                part.release()
