"""What a teacher's confidence is worth by itself: as the samples' weights, or as all that is left of its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.strategies.classes import count_classes
from kdc.distill.strategy_settings.weights import PermutedAnswers, TeacherConfidence


def confidence_weights(teacher: torch.Tensor) -> torch.Tensor:
    """Each sample's weight: n max p_s / sum over the batch of max p_u, with p the teacher's probabilities.

    Args: teacher: logits [n, classes].
    Returns: [n], above 0, of mean 1: weighting a mean over the batch leaves its size.
    Source: CWTM, Furlanello et al. 2018, arXiv:1805.04770, as in the abstract; that the labels' loss is what they weight
    is from public reimplementations, the paper's equation was not seen.
    """
    largest = functional.softmax(teacher.float(), 1).amax(1)
    return largest / largest.mean()


def permuted(teacher: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same outputs, each sample's all but its largest in a random order of its own: [n, classes] -> [n, classes].

    Its confidence, and the values of what it thinks of the other classes, stay; which class is like which is gone.
    Source: DKPP, Furlanello et al. 2018, arXiv:1805.04770, as in the abstract; that each sample has a permutation of its
    own is our choice.
    """
    n, classes = teacher.shape
    draws = torch.rand((n, classes), generator=generator).to(teacher.device)
    largest = teacher.argmax(1, keepdim=True)
    order = draws.scatter(1, largest, -1.0).argsort(1)  # the largest first, then the others as drawn
    others = torch.arange(classes, device=teacher.device).expand(n, classes)
    places = torch.cat([largest, others[others != largest].reshape(n, classes - 1)], 1)
    return torch.empty_like(teacher).scatter(1, places, teacher.gather(1, order))


class ConfidenceWeights(Policy):
    """CWTM: the losses count by how sure the teacher is of the sample, whether it is right or not."""

    def __init__(self, settings: TeacherConfidence, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        count_classes(self.kind, context)

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        weights, on = confidence_weights(batch.teacher.detach()), self.settings.on
        return {
            policy: loss * weights if on in ("both", "labels" if policy.of_labels else "teacher") else loss
            for policy, loss in losses.items()
        }


class Permutation(Policy):
    """DKPP: every objective sees the teacher's answers permuted, newly at each step.

    A strategy that changes the inputs must stand before it in training.strategies: it would have the teacher asked anew.
    """

    def __init__(self, settings: PermutedAnswers, student: nn.Module, context: Context) -> None:
        self.kind, self.context = settings.kind, context
        count_classes(self.kind, context)

    @torch.no_grad()
    def change(self, drawn: Drawn) -> Drawn:
        teacher = drawn.teacher
        if teacher is None:
            teacher = self.context.teacher(*drawn.inputs).float()
        generator = self.context.generator(f"{self.kind}.{drawn.name}")
        return dataclasses.replace(drawn, teacher=permuted(teacher, generator))
