"""The leaderboard as a value: what each method reached, what the differences show, and which method is chosen.

Everything is judged on the validation split, where the choice is made; the test split confirms the chosen one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from kdc.driver.methods import CROSS_ENTROPY, PLAIN_KD, Role, Teacher
from kdc.driver.traits import Traits
from kdc.numerics.seeds import Verdict, crossed_difference, holm, mean_over_seeds, verdict

VALIDATION, TEST = "validation", "test"
REFERENCES = (PLAIN_KD, CROSS_ENTROPY)
Scores = np.ndarray[Any, Any]
"""[seeds, samples], 0 to 1."""


class Figure(BaseModel, frozen=True):
    """A mean over seeds with its 95% interval, in points, and each seed's own."""

    points: float
    low: float
    high: float
    by_seed: tuple[float, ...]


class Comparison(BaseModel, frozen=True):
    """A method against a reference: paired by seed and sample, p-value by itself and after Holm's correction."""

    points: float
    low: float
    high: float
    p_value: float
    p_holm: float
    verdict: Verdict


class Row(BaseModel, frozen=True):
    """One method. `failed`: why it has no figures. `factor`: what its weights were multiplied by."""

    name: str
    role: Role
    teacher: Teacher = "own"
    objectives: tuple[dict[str, Any], ...] = ()
    training: dict[str, Any] = Field(default={}, description="what of the training is this method's own")
    factor: float = 1.0
    failed: str | None = None
    fault: str | None = Field(default=None, description="the traceback, where it failed by a fault of kdc's own")
    figures: dict[str, Figure] = Field(default={}, description="the task's headline metric by split")
    metrics: dict[str, dict[str, float]] = Field(default={}, description="by split, means over seeds")
    against: dict[str, Comparison] = Field(default={}, description="on the validation split, by reference")
    notes: tuple[str, ...] = ()
    seconds: float | None = Field(default=None, description="of one training and its judging, mean over seeds")


class Choice(BaseModel, frozen=True):
    """The method with the best mean on the validation split, and what the test split says of it."""

    name: str
    against: dict[str, Comparison] = Field(description="on the test split, by reference")

    @property
    def confirmed(self) -> bool:
        """Whether the test split shows it better than everything that it was compared with."""
        return bool(self.against) and all(one.verdict == "better" for one in self.against.values())


class Leaderboard(BaseModel, frozen=True):
    """All of it, as `leaderboard.json` holds it."""

    schema_version: int = 1
    name: str = Field(description="the recipe's, for the reader")
    metric: str
    traits: Traits
    seeds: tuple[int, ...]
    options: dict[str, Any]
    training: dict[str, Any] = Field(description="the same for all methods")
    factors: dict[str, dict[str, float | None]] = Field(
        default={}, description="method: factor: points on the validation split with a seed of its own; null: failed"
    )
    rows: tuple[Row, ...]
    choice: Choice | None
    environment: dict[str, Any] = {}
    seconds: float = Field(description="of all trainings together, on one thread each")

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)


def figure(scores: Scores) -> Figure:
    """Scores [seeds, samples] in 0..1 as points."""
    by_seed = 100 * scores.mean(1)
    mean, low, high = mean_over_seeds(by_seed)
    return Figure(points=mean, low=low, high=high, by_seed=tuple(map(float, by_seed)))


def compared(pairs: Mapping[str, tuple[Scores, Scores]]) -> dict[str, Comparison]:
    """Each method with its reference, scores paired by seed and sample; corrected over all that are compared here."""
    found = {name: crossed_difference(method, reference) for name, (method, reference) in pairs.items()}
    adjusted = holm([one.p_value for one in found.values()])
    return {
        name: Comparison(**one._asdict(), p_holm=p, verdict=verdict(one.points, p))
        for (name, one), p in zip(found.items(), adjusted, strict=True)
    }


def judged(rows: Sequence[Row], scores: Mapping[str, Mapping[str, Scores]]) -> tuple[tuple[Row, ...], Choice | None]:
    """Rows with their figures and comparisons, and the method that is chosen.

    Args: rows: without figures. scores: by method, by split, of the methods that did not fail.
    Returns: rows in their order; the choice is the method with the best mean on the validation split among plain KD and
        everything that is no control (of equal ones the first), None where all of them failed.
    """
    on_validation = {name: splits[VALIDATION] for name, splits in scores.items()}
    by_reference = {
        reference: compared({n: (own, on_validation[reference]) for n, own in on_validation.items() if n != reference})
        for reference in REFERENCES
        if reference in scores
    }
    done = tuple(
        row
        if row.failed is not None
        else row.model_copy(
            update={
                "figures": {split: figure(own) for split, own in scores[row.name].items()},
                "against": {ref: found[row.name] for ref, found in by_reference.items() if row.name != ref},
            }
        )
        for row in rows
    )
    eligible = [row for row in done if row.failed is None and (row.role != "control" or row.name == PLAIN_KD)]
    if not eligible:
        return done, None
    best = max(eligible, key=lambda row: row.figures[VALIDATION].points)
    controls = [row.name for row in done if row.role == "control" and row.name in scores and row.name != best.name]
    on_test = {name: splits[TEST] for name, splits in scores.items()}
    against = compared({name: (on_test[best.name], on_test[name]) for name in controls})
    return done, Choice(name=best.name, against=against)
