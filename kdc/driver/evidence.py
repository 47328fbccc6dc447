"""Leaderboards as evidence: those that ship with kdc and the user's own, and how far each is from a task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from kdc.core.errors import UserError
from kdc.driver.standings import Leaderboard
from kdc.driver.traits import Traits

NEAR = 1.0
"""Decades: evidence that differs by more than ten times in any trait is not near. Ours: two data sets fit no scale."""
LEAST_ERROR = 0.5  # points: below it, the samples that a teacher gets wrong are too few to tell teachers apart


@dataclass(frozen=True)
class Distance:
    """How far two tasks are, in decades (factors of ten) of the trait that differs most; infinite across families."""

    decades: float
    trait: str

    @property
    def near(self) -> bool:
        """Whether what was measured on the one says something of the other."""
        return self.decades <= NEAR

    def __str__(self) -> str:
        if math.isinf(self.decades):
            return f"another {self.trait}"
        if self.decades < 0.05:
            return "alike in all traits"
        return f"differs most in {self.trait}, by {10**self.decades:.1f} times"


@dataclass(frozen=True)
class Evidence:
    """A leaderboard and where it came from."""

    source: str
    board: Leaderboard


def distance(one: Traits, other: Traits) -> Distance:
    """The largest difference of two tasks' traits, each as a ratio: a trait that is ten times another is 1 away.

    AutoDistiller (Distiller, He et al. 2021, arXiv:2109.11105) fits a model of the score by features of the data set and
    the pipeline. A fit needs many data sets; the nearest neighbour needs one, and its distance can be told.
    """
    for trait in ("task", "family"):
        if getattr(one, trait) != getattr(other, trait):
            return Distance(math.inf, trait)
    pairs = {
        "classes": (one.classes, other.classes),
        "samples per class": (one.samples_per_class, other.samples_per_class),
        "size of a sample": (one.sample_size, other.sample_size),
        "the teacher's error": (_error(one.teacher_points), _error(other.teacher_points)),
        "the student's share of the MACs": (_share(one), _share(other)),
    }
    decades = {name: abs(math.log10(a / b)) for name, (a, b) in pairs.items()}
    furthest = max(decades, key=lambda name: decades[name])
    return Distance(decades[furthest], furthest)


def shipped() -> list[Evidence]:
    """The leaderboards in the package, by name."""
    folder = resources.files("kdc.distill").joinpath("leaderboards")
    if not folder.is_dir():
        return []
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return [Evidence(f"kdc's own {file.name}", Leaderboard.model_validate_json(file.read_text())) for file in files]


def read(paths: Iterable[Path]) -> list[Evidence]:
    """The user's own.

    Raises: UserError for a file that is no leaderboard.
    """
    found = []
    for path in paths:
        try:
            board = Leaderboard.model_validate_json(path.read_text())
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not what `kdc bench distill` writes"
            raise UserError(f"{path} is no leaderboard: {reason}", do="name a leaderboard.json") from error
        found.append(Evidence(str(path), board))
    return found


def _error(points: float) -> float:
    return max(100.0 - points, LEAST_ERROR)


def _share(traits: Traits) -> float:
    return max(traits.student_macs, 1) / max(traits.teacher_macs, 1)
