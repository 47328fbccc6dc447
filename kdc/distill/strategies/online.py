"""A group of networks learns together, and the best of them teach the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.copies import bare_copy
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policy import Batch, Policy
from kdc.distill.strategies.classes import count_classes, told
from kdc.distill.strategy_settings.online import RoleChange


@dataclass(frozen=True)
class Lesson:
    """What a step teaches: which networks teach, bool [networks], and whether they are being taught themselves."""

    teachers: torch.Tensor
    private: bool


class RoleChanges(Policy):
    """ORC: networks are ranked, the best teach; they first train on what the students get wrong, then teach jointly.

    The group is the student (number 0) and peers of its structure with first weights of their own. A round is some
    private steps and then some joint ones; before each, networks are ranked by their running loss on the labels of the
    training batches, and the best become the teachers: a student may rise to teacher, and a teacher fall. With r_s the
    share of the student networks that are wrong about sample s, and z the teachers' mean logits, the losses are
    private, of a teacher: feedback * r_s * CE(label); joint, of a student: T^2 KL(softmax(z/T) || softmax(own/T)).
    Peers have CE(label) at every step beside it; the student has what the recipe's objectives say.

    What is shipped is the student, with the loop's average of its weights, whatever its last rank: a peer's weights
    would come without theirs. So roles decide who teaches, not who is kept. The student is one of the group like any
    other: ranked first it teaches, and then learns from the labels, its errors' feedback and the recipe's objectives.
    Source: ORC, Choi et al. 2023, arXiv:2206.01186, as in the abstract; the ranking by running loss, the weights r_s
    in place of new images made of the errors, and the mean of logits are our choice.
    """

    reads_teacher = False
    of_labels = True

    def __init__(self, settings: RoleChange, student: nn.Module, context: Context) -> None:
        self.settings, self.kind = settings, settings.kind
        self.classes = count_classes(self.kind, context)
        group = nn.Module()
        self.peers = group.peers = nn.ModuleList(
            peer_of(student, settings.fresh, context.generator(f"{self.kind}.peer.{number}"))
            for number in range(settings.peers)
        )
        group.register_buffer("losses", torch.zeros(settings.peers + 1))
        group.register_buffer("teachers", torch.arange(settings.peers + 1) > settings.peers - settings.teachers)
        self.trained: nn.Module | None = group
        self.losses, self.teachers = group.get_buffer("losses"), group.get_buffer("teachers")

    def loss(self, batch: Batch) -> torch.Tensor:
        lesson = self.lesson(batch.number)
        self.peers.train()
        answers = torch.stack([batch.student, *(peer(*batch.inputs).to(batch.student) for peer in self.peers)])
        target, known = told(batch, self.classes)
        count = len(answers)
        right = (
            functional.cross_entropy(answers.flatten(0, 1), target.repeat(count, 1), reduction="none").reshape(
                count, -1
            )
            * known
        )  # [networks, batch]
        self._remember(right.detach(), known, batch.number)
        taught = self.taught(answers, target, known, right, lesson)
        return right[1:].sum(0) + self.settings.weight * taught.sum(0)

    def lesson(self, number: int) -> Lesson:
        """The lesson of step `number`; roles change where a round begins."""
        place = number % (self.settings.private_steps + self.settings.joint_steps)
        if place == 0 and number > 0:
            best = self.losses.argsort(stable=True)[: self.settings.teachers]
            self.teachers.zero_()[best] = True
        return Lesson(self.teachers, place < self.settings.private_steps)

    def taught(
        self, answers: torch.Tensor, target: torch.Tensor, known: torch.Tensor, right: torch.Tensor, lesson: Lesson
    ) -> torch.Tensor:
        """What the lesson adds to each network's loss, [networks, batch].

        Args: answers: logits [networks, batch, classes]; right: their losses on the labels [networks, batch].
        """
        settings, teachers = self.settings, lesson.teachers
        if lesson.private:
            wrong = (answers[~teachers].argmax(2) != target.argmax(1)).to(right).mean(0) * known
            return settings.feedback * teachers[:, None] * wrong * right
        together = answers[teachers].mean(0).detach()
        learned = torch.stack([soft_targets(own, together, settings.temperature) for own in answers])
        return torch.where(teachers[:, None], torch.zeros_like(learned), learned)

    @torch.no_grad()
    def _remember(self, right: torch.Tensor, known: torch.Tensor, number: int) -> None:
        if not known.any():
            return
        mean = (right.sum(1) / known.sum()).to(self.losses)
        # Steps weigh evenly until the memory is full, else the first losses are those of the zeros it begins with.
        self.losses.lerp_(mean, 1 - min(self.settings.memory, number / (number + 1)))


@torch.no_grad()
def peer_of(student: nn.Module, fresh: float, generator: torch.Generator) -> nn.Module:
    """A copy of the student with other weights of the same mean and spread in every tensor of two and more dimensions.

    Each such weight is m + sqrt(1 - fresh^2) (w - m) + fresh * spread * noise, with m and spread the tensor's mean and
    standard deviation; biases, scales and statistics are the student's.
    """
    peer = bare_copy(student).requires_grad_(True)
    for parameter in peer.parameters():
        if parameter.dim() > 1:
            spread, mean = torch.std_mean(parameter.float(), correction=0)
            noise = torch.randn(parameter.shape, generator=generator) * spread
            drawn = mean + (1 - fresh**2) ** 0.5 * (parameter.float() - mean) + fresh * noise
            parameter.copy_(drawn)
    return peer
