"""Mixtures that only the student sees; the teacher's answers to the samples in them are mixed instead."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.policy import Drawn, Policy
from kdc.distill.strategies.mixing import blend, pairs, refuse_integers
from kdc.distill.strategy_settings.mixing import StudentMixup


class MixedForTheStudent(Policy):
    """Pairs of a step's samples are mixed for the student, with the teacher's answers to the two unmixed samples.

    The stored answers of the unmixed view serve, so that each step has fresh mixtures at no cost of the teacher's. Where
    the teacher runs in the step (for objectives on features), it is asked on the samples and then on the mixtures too, so
    that features are compared on one and the same input.
    Source: mixup on the student's side alone is one of the cases of "Understanding the role of mixup in knowledge
        distillation" (abstract; the authors' code, hchoi71/MIX-KD, has the mixture for both). That the teacher's
        answers are then mixed as probabilities, as mixup mixes labels, is our reading.
    """

    def __init__(self, settings: StudentMixup, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.context = settings, settings.kind, context
        refuse_integers(context.data.train.inputs, self.kind)

    @torch.no_grad()
    def change(self, drawn: Drawn) -> Drawn:
        generator = self.context.generator(f"{self.kind}.{drawn.name}")
        partner, share = pairs(len(drawn.index), self.settings.alpha, self.settings.portion, generator)
        mixed = tuple(blend(tensor, tensor[partner], share) for tensor in drawn.inputs)
        answers = drawn.teacher
        if answers is None:
            answers = self.context.teacher(*drawn.inputs).float()
            self.context.teacher(*mixed)  # for whoever looks at its features
        return dataclasses.replace(
            drawn,
            inputs=mixed,
            teacher=mixed_answers(answers, answers[partner], share),
            others=drawn.labels[partner],
            share=share,
        )


def mixed_answers(one: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """log(share * softmax(one) + (1 - share) * softmax(other)): logits whose softmax is the mixture of both.

    An objective with a temperature softens this mixture; at temperature 1 its target is the mixture itself.

    Args: one, other: logits, [n, ..., classes]. share: 0 to 1, [n].
    Returns: log probabilities, nats, [n, ..., classes].
    """
    wide = share.to(one.dtype).reshape(-1, *(1,) * (one.dim() - 1))
    logs = functional.log_softmax(one, -1) + wide.log(), functional.log_softmax(other, -1) + (1 - wide).log()
    return torch.logaddexp(*logs)
