"""Embeddings of earlier examples, kept from step to step as negatives of a contrast; they are in the loop's checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from kdc.distill.feature_settings import Contrastive
from kdc.distill.objectives.contrastive import contrastive
from kdc.distill.objectives.shapes import directions, wide


class Remembering(nn.Module):
    """CRD with the last `memory` examples as negatives beside those of the batch.

    A ring of embeddings as they were when their example was seen. The paper keeps one average for each example of the
    training split; a ring needs no numbers of examples, and what it holds is younger. As there, an example can meet its
    own earlier embedding among the negatives.
    """

    def __init__(self, settings: Contrastive, population: int, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.population, self.temperature = population, settings.temperature
        size = min(settings.memory, population)
        self.register_buffer("of_student", torch.zeros(size, settings.width))
        self.register_buffer("of_teacher", torch.zeros(size, settings.width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """[batch, channels, *positions] of both -> [batch]; what was given is remembered after."""
        s, t = self.student(wide(student)), self.teacher(wide(teacher.detach()))
        rings = self.get_buffer("of_student"), self.get_buffer("of_teacher")
        filled = min(int(self.get_buffer("seen")), len(rings[0]))
        # Copies: the rings are written before the gradient has gone back through what was read.
        earlier = rings[0][:filled].to(s, copy=True), rings[1][:filled].to(t, copy=True)
        value = contrastive(s, t, self.population, self.temperature, earlier)
        self._remember(s, t)
        return value

    @torch.no_grad()
    def _remember(self, student: torch.Tensor, teacher: torch.Tensor) -> None:
        rings, seen = (self.get_buffer("of_student"), self.get_buffer("of_teacher")), self.get_buffer("seen")
        size = len(rings[0])
        if size == 0:
            return
        last = min(size, len(student))
        places = (int(seen) + len(student) - last + torch.arange(last)) % size
        for ring, embeddings in zip(rings, (student, teacher), strict=True):
            ring[places] = directions(embeddings[-last:], 1).to(ring)
        seen += len(student)
