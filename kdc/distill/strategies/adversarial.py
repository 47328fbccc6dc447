"""The student learns from samples on which it was attacked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.distill.attack import Bounds, Loss, attacked
from kdc.distill.modes import evaluating
from kdc.distill.objectives.distributions import kl, log_probabilities, per_example, wide
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.several import Several, answers, mean_of_probabilities
from kdc.distill.strategy_settings.adversarial import Adversarial, LowTemperature


class AdversarialInputs(Policy):
    """Each step's samples are changed by an attack on the student; all objectives see the changed samples.

    With `clean_share` c above 0 the samples as they were are trained on too: the batch is both, and all losses are weighted
    to c times the mean over the clean samples plus 1 - c times that over the adversarial ones (TRADES, RSLAD).
    LTD divides the teacher's logits by a temperature of its own, low but above the student's 1: softer than a label, and
    the student's logits are not scaled, so that its gradient is not masked.

    Source: ARD, Goldblum et al. 2020, arXiv:1905.09747 (the teacher answers for the clean sample), as the authors' code
    with its weight of 1 for the teacher: with a smaller one its labels are of the clean samples, here they are of all.
    TRADES, Zhang et al. 2019, arXiv:1901.08573, and RSLAD, Zi et al. 2021, arXiv:2108.07969, whose code has a clean share
    of 1/6: what the attack raises is theirs. LTD, Chen & Lee 2021, arXiv:2111.02331, as in the abstract: that the attack
    too is against the softened teacher, and its default, are ours.
    """

    def __init__(self, settings: Adversarial | LowTemperature, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student, self.context = settings, settings.kind, student, context
        self.bounds = Bounds.of(context.data.train, settings.attack)
        self.reads_teacher = settings.teacher_sees == "clean" or settings.against == "teacher"
        self.runs_teacher = settings.teacher_sees == "adversarial"

    def change(self, drawn: Drawn) -> Drawn:
        settings = self.settings
        clean = self._cooled(answers(drawn, self.context)) if self.reads_teacher else None
        seed = named_seed(self.context.seed, self.context.step, self.kind, drawn.name)
        generator = torch.Generator().manual_seed(seed)
        loss = self._away_from(drawn, clean)
        changed = attacked(self.student, drawn.inputs, loss, settings.attack, self.bounds, generator)
        answer = clean if settings.teacher_sees == "clean" else None
        if settings.clean_share:
            return both(drawn, changed, None if answer is None else torch.cat([answer, answer]))
        return dataclasses.replace(drawn, inputs=changed, teacher=answer)

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        share = self.settings.clean_share
        if not share:
            return losses
        return {policy: halves(values, share, 1 - share) for policy, values in losses.items()}

    def _cooled(self, answer: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        return answer / settings.teacher_temperature if isinstance(settings, LowTemperature) else answer

    def _away_from(self, drawn: Drawn, teacher: torch.Tensor | None) -> Loss:
        """The loss that the attack raises, of the student's outputs."""
        if self.settings.against == "labels":
            return label_loss(drawn, self.student, self.context)
        if self.settings.against == "student":
            with evaluating(self.student), torch.no_grad():
                answer = self.student(*drawn.inputs)
        else:
            assert teacher is not None
            answer = mean_of_probabilities(teacher) if isinstance(self.context.teacher, Several) else teacher
        log_p = log_probabilities(wide(answer), 1.0)
        return lambda outputs: per_example(kl(log_p, log_probabilities(wide(outputs), 1.0)))


def label_loss(drawn: Drawn, student: nn.Module, context: Context) -> Loss:
    """The task's loss on the labels; an unlabelled sample has the class that the student gives it as it is."""
    labels = drawn.labels
    if bool((labels < 0).any()):
        with evaluating(student), torch.no_grad():
            labels = torch.where(labels < 0, student(*drawn.inputs).argmax(1), labels)
    others, share = drawn.others, drawn.share
    if others is None or share is None:
        return lambda outputs: context.task.loss(outputs, labels)
    second = others.clamp_min(0)
    return lambda outputs: share * context.task.loss(outputs, labels) + (1 - share) * context.task.loss(outputs, second)


def both(drawn: Drawn, changed: tuple[torch.Tensor, ...], teacher: torch.Tensor | None) -> Drawn:
    """The samples as they were, and after them the changed ones: [2 batch, ...]; `teacher` are the answers for both."""

    def twice(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else torch.cat([tensor, tensor])

    return dataclasses.replace(
        drawn,
        index=torch.cat([drawn.index, drawn.index]),
        inputs=tuple(torch.cat(pair) for pair in zip(drawn.inputs, changed, strict=True)),
        labels=torch.cat([drawn.labels, drawn.labels]),
        teacher=teacher,
        others=twice(drawn.others),
        share=twice(drawn.share),
    )


def halves(values: torch.Tensor, first: float | torch.Tensor, second: float | torch.Tensor) -> torch.Tensor:
    """Values [2 batch] weighted so that their mean is first * mean of the first half + second * mean of the second."""
    one, other = values.chunk(2)
    return torch.cat([2 * first * one, 2 * second * other])
