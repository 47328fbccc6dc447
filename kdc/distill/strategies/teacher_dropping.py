"""A loss for each teacher, some of them left out by chance, so that no teacher is forgotten."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.several import all_answers, mean_of_probabilities, several
from kdc.distill.strategy_settings.several import TeacherDropping


def kept_teachers(losses: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Which teachers count for a sample: the one with the largest loss always, each other with 1 - probability.

    Args: losses: of each teacher, [batch, teachers].
    Returns: 1.0 or 0.0, [batch, teachers].
    Source: UNIC, Sariyildiz et al. 2024, arXiv:2408.05088, "teacher dropping", and its official code.
    """
    kept = torch.rand(losses.shape, generator=generator).to(losses.device) >= probability
    largest = nn.functional.one_hot(losses.argmax(1), losses.shape[1]).bool()
    return (kept | largest).to(losses.dtype)


class DroppedTeachers(Policy):
    """The sum of the kept teachers' losses, divided by how many are kept of the whole batch: m_ik l_ik batch / sum of m.

    The mean over the batch is then that over the kept pairs of sample and teacher, as in the official code; there the loss
    is a cosine and a smooth L1 of features, here it is any objective on outputs. Other objectives see the mean of the
    teachers' probabilities.
    """

    def __init__(self, settings: TeacherDropping, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.context = settings, settings.kind, context
        count = len(several(context, self.kind))
        self._each = [policies([settings.objective], student, context)[0] for _ in range(count)]
        remembered = [policy.trained for policy in self._each if policy.trained is not None]
        self.trained = nn.ModuleList(remembered) if remembered else None
        self._stack = torch.empty(0)

    def change(self, drawn: Drawn) -> Drawn:
        self._stack = all_answers(drawn, self.context, self.kind)
        return dataclasses.replace(drawn, teacher=mean_of_probabilities(self._stack))

    def loss(self, batch: Batch) -> torch.Tensor:
        losses = torch.stack(
            [self._of(policy, dataclasses.replace(batch, teacher=t)) for policy, t in self._by_teacher()], 1
        )
        seed = named_seed(self.context.seed, self.context.step, self.kind, batch.name)
        generator = torch.Generator().manual_seed(seed)
        kept = kept_teachers(losses.detach(), self.settings.probability, generator)
        return (kept * losses).sum(1) * (len(kept) / kept.sum())

    def _by_teacher(self) -> list[tuple[Policy, torch.Tensor]]:
        return list(zip(self._each, self._stack.unbind(1), strict=True))

    @staticmethod
    def _of(policy: Policy, batch: Batch) -> torch.Tensor:
        values = policy.loss(batch)
        assert values is not None  # every objective on outputs has a loss
        return values
