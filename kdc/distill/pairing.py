"""Layers of student and teacher, paired by themselves.

The student's layers are the ends of equal parts of its depth; each gets the end of a block or stage of the teacher, in the
order of depth, by what a batch of real inputs makes of the two (linear CKA), by their depth and by their positions. A
recipe that names layers is taken at its word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdc.distill.alignment import Layer, aligned
from kdc.distill.cka import alignment
from kdc.distill.taps import candidates, described, grams

PROBE_SAMPLES = 64
_DEPTH_WEIGHT = 1.0  # what a pair at opposite ends of the two models must make up for in CKA
_SIZE_WEIGHT = 0.1  # and for each doubling of positions between the two


@dataclass(frozen=True)
class Pair:
    """Two layers whose features an objective compares; `cka` as it was before the training."""

    student: Layer
    teacher: Layer
    cka: float

    def aligned(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two layers' outputs as [batch, channels, *positions] with the same positions."""
        features = self.student.channels_first(student), self.teacher.channels_first(teacher)
        return aligned(*features, (self.student.channels_last, self.teacher.channels_last))

    @property
    def dimensions(self) -> int:
        """Of the positions when aligned: 2 for maps, 1 for sequences and vectors."""
        return len(self.positions)

    @property
    def positions(self) -> tuple[int, ...]:
        """Of both features when aligned."""
        zeros = torch.zeros(1, *self.student.shape), torch.zeros(1, *self.teacher.shape)
        return tuple(self.aligned(*zeros)[0].shape[2:])

    def __str__(self) -> str:
        return f"{self.student.path} with {self.teacher.path} (CKA {self.cka:.2f})"


def pairs(
    student: nn.Module,
    teacher: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    count: int | None,
    named: Mapping[str, str] | None = None,
) -> list[Pair]:
    """The pairs of an objective, by what both models make of `inputs` in evaluation mode.

    Args: count: how many, spread over the student's depth; None: one, of the last candidates. named: student's path:
        teacher's path; these and no others, where there are any.
    Returns: in the order of the student's depth, or of `named`; none where a model has no inner layer to compare.
    Raises: ModelError for a named layer that is not there, or that gives no feature.
    """
    probe = tuple(tensor[:PROBE_SAMPLES] for tensor in inputs)
    if named:
        of_student, of_teacher = described(student, probe, [*named]), described(teacher, probe, [*named.values()])
    else:
        of_student, of_teacher = candidates(student, probe), candidates(teacher, probe)
        if not of_student or not of_teacher:
            return []
        if count is None:
            of_student, of_teacher = of_student[-1:], of_teacher[-1:]
        else:
            # The ends of equal parts of the student: by CKA alone the first layers, where all models are alike, would win.
            count = min(count, len(of_student), len(of_teacher))
            of_student = [of_student[(i + 1) * len(of_student) // count - 1] for i in range(count)]
    seen = grams(student, probe, of_student), grams(teacher, probe, of_teacher)

    def pair(s: Layer, t: Layer) -> Pair:
        return Pair(s, t, alignment(seen[0][s.path], seen[1][t.path]))

    if named:
        return [pair(s, t) for s, t in zip(of_student, of_teacher, strict=True)]
    table = [[pair(s, t) for t in of_teacher] for s in of_student]
    scores = [[_score(one) for one in row] for row in table]
    return [row[column] for row, column in zip(table, monotone(scores), strict=True)]


def _score(pair: Pair) -> float:
    """CKA less what speaks against a pair; the two weights are ours."""
    sizes = [math.prod(layer.positions) for layer in (pair.student, pair.teacher)]
    unlike_depth = abs(pair.student.depth - pair.teacher.depth)
    return pair.cka - _DEPTH_WEIGHT * unlike_depth - _SIZE_WEIGHT * abs(math.log2(sizes[0] / sizes[1]))


def monotone(scores: Sequence[Sequence[float]]) -> list[int]:
    """A column for each row, strictly rising, with the highest sum of scores; by dynamic programming.

    Args: scores: [rows][columns], no more rows than columns.
    """
    columns = len(scores[0]) if scores else 0
    # best[c]: the highest sum of the rows so far that use columns below c alone, and those columns.
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (columns + 1)
    for row in scores:
        after: list[tuple[float, list[int]]] = [(-math.inf, [])]
        for column, score in enumerate(row):
            total, chosen = best[column]
            after.append(max((total + score, [*chosen, column]), after[-1], key=lambda way: way[0]))
        best = after
    return best[-1][1]
