"""MEKD's distillation: answers of student and teacher are turned back into inputs by a generator, and compared as such."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.heads import outputs_of
from kdc.distill.logit_settings import Emulated
from kdc.distill.objectives.distributions import matched
from kdc.distill.policy import Batch, Policy
from kdc.distill.projectors import LinearHead
from kdc.distill.taps import InputTap


class Generator(nn.Module):
    """Probabilities [batch, classes] -> an input [batch, values]: three linear layers with rectifiers between."""

    def __init__(self, classes: int, width: int, values: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = LinearHead(classes, width, generator)
        self.second = LinearHead(width, width, generator)
        self.last = LinearHead(width, values, generator)

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """[batch, classes] -> [batch, values]."""
        made: torch.Tensor = self.last(self.second(self.first(probabilities).relu()).relu())
        return made


def input_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two inputs, [batch, values] -> [batch]."""
    return (student - teacher).square().mean(1)


class Emulation(Policy):
    """Squared distance of the inputs that a generator makes of the student's and of the teacher's answer.

    The generator emulates the inverse of the teacher: for the first `generator` of the steps it learns to make, of the
    teacher's answer, the input that it was given for, by mean squared error; the student learns from the recipe's other
    objectives meanwhile. Then it is fixed, and the student's gradient comes through it. Of the teacher nothing is needed
    but its answers: probabilities, or with `hard` the class that it chose.
    Source: Ma et al. 2024 (MEKD), arXiv:2205.10490, as in the abstract (an inverse mapping by a generator, then distance
    of image points). Its generator is trained adversarially and without the user's data; here it learns from the training
    split by squared error, and so makes the mean of the inputs that have an answer. Layers and shares are ours.
    """

    def __init__(self, settings: Emulated, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        example = context.data.calibration.inputs[0]
        if not example.is_floating_point():
            raise ModelError(
                f"{settings.kind} compares inputs as numbers, and the first input is {example.dtype}",
                do="take `predictions`, which compares answers alone",
            )
        classes, values = outputs_of(context.teacher, context, settings.kind), example[0].numel()
        self.generator = Generator(classes, settings.width, values, context.generator(f"{settings.kind}.generator"))
        self.trained: nn.Module | None = self.generator
        self._tap = InputTap(student)

    def loss(self, batch: Batch) -> torch.Tensor:
        """[batch]; weighted once the generator is fixed."""
        student, teacher = matched(batch.student, batch.teacher)
        answers = self._answers(teacher.detach())
        if batch.progress < self.settings.generator:
            made = self.generator(answers)
            return input_distance(made, self._tap.first.flatten(1).to(made))
        fixed = {name: parameter.detach() for name, parameter in self.generator.named_parameters()}
        own: torch.Tensor = functional_call(self.generator, fixed, (student.softmax(-1),))
        target: torch.Tensor = functional_call(self.generator, fixed, (answers,))
        return self.settings.weight * input_distance(own, target)

    def _answers(self, teacher: torch.Tensor) -> torch.Tensor:
        if self.settings.hard:
            return nn.functional.one_hot(teacher.argmax(-1), teacher.shape[-1]).to(teacher.dtype)
        return teacher.softmax(-1)

    def close(self) -> None:
        """Leave the student as it was found."""
        self._tap.close()
