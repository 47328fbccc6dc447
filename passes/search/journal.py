"""What is known of every candidate, written down as it is learned: a search that was killed goes on from it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from kdc.core.budget import Cost
from kdc.core.writing import discard, is_plain_file
from passes.search.spaces import Student, describe, key


class Candidate(BaseModel, frozen=True, extra="forbid"):
    """One structure and what was found of it; `points` are of the validation split, after each short distillation.

    `macs` are of one sample; `layers` counts tensors of weights; `failure` says why it could not be built, exported or
    trained.
    """

    student: Student
    parameters: int = 0
    macs: int = 0
    layers: int = 0
    score: float = 0.0
    cost: Cost | None = None
    fits: bool = False
    points: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def key(self) -> str:
        """The structure's own name."""
        return key(self.student)

    @property
    def family(self) -> str:
        """The family of the structure."""
        return self.student.family

    def row(self, *, front: bool, chosen: bool) -> dict[str, Any]:
        """The candidate as the report shows it."""
        return {
            "structure": describe(self.student),
            "student": self.student.model_dump(mode="json") if chosen else None,
            "parameters": self.parameters,
            "macs": self.macs,
            "latency_ms": None if self.cost is None else self.cost.latency_ms,
            "size_mb": None if self.cost is None else self.cost.size_mb,
            "score": self.score,
            "fits": self.fits,
            "points": list(self.points),
            "failure": self.failure,
            "front": front,
            "chosen": chosen,
        }


_LINE = TypeAdapter(list[Candidate])


class Journal:
    """Candidates by their key, in the order they were met.

    What is learned together is one line at the end of the file, with its SHA-256 before it, so that a kill leaves all of
    it or nothing, and what was damaged, with all that followed, is learned again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Candidate] = {}
        whole = 0
        if not is_plain_file(path):
            discard(path)
        for line in _lines(path):
            digest, _, text = line.removesuffix(b"\n").partition(b" ")
            if digest != _digest(text):
                break  # the line that a kill cut off, or one that was damaged
            together = _LINE.validate_json(text)
            self._known.update((candidate.key, candidate) for candidate in together)
            whole += len(line)
        if path.exists():
            os.truncate(path, whole)

    def find(self, student: Student) -> Candidate | None:
        """What is known of a structure."""
        return self._known.get(key(student))

    def put(self, *candidates: Candidate) -> None:
        """Write down what is now known of these candidates."""
        with self._path.open("ab") as file:
            text = _LINE.dump_json(list(candidates))
            file.write(_digest(text) + b" " + text + b"\n")
        self._known.update((candidate.key, candidate) for candidate in candidates)

    def all(self) -> list[Candidate]:
        """Every candidate, in the order they were met."""
        return list(self._known.values())


def front(candidates: list[Candidate]) -> set[str]:
    """Keys of the distilled candidates that no other beats in cost and points: by latency where all were timed, else MACs.

    A candidate that was distilled for longer is not compared with those that left before: only its own round counts.
    """
    judged = [candidate for candidate in candidates if candidate.points and candidate.failure is None]
    timed = all(candidate.cost is not None for candidate in judged)

    def cost(candidate: Candidate) -> float:
        return candidate.cost.latency_ms if timed and candidate.cost is not None else float(candidate.macs)

    def beaten(one: Candidate) -> bool:
        last = len(one.points) - 1
        return any(
            len(other.points) > last
            and (cost(other), -other.points[last]) != (cost(one), -one.points[last])
            and cost(other) <= cost(one)
            and other.points[last] >= one.points[last]
            for other in judged
        )

    return {candidate.key for candidate in judged if not beaten(candidate)}


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        yield from (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
