"""`kdc advise distill`: which pipeline the evidence near a task speaks for, how much that is, or that there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError

from kdc.core.observe import Emit, Note, silent
from kdc.core.scratch import scratch_folder
from kdc.distill.settings import Training
from kdc.distill.teacher import predict
from kdc.driver.evidence import Evidence, distance
from kdc.driver.inputs import load
from kdc.driver.methods import PLAIN_KD
from kdc.driver.recipe import Recipe
from kdc.driver.standings import VALIDATION, Comparison, Leaderboard, Row
from kdc.driver.students import narrowed
from kdc.driver.traits import Traits, traits_of
from kdc.driver.trial import Bench

BANDWIDTH = 0.5  # decades: evidence half a decade off counts e^-0.5 as much as evidence of the very task
SCHEDULE = ("epochs", "batch", "learning_rate", "weight_decay", "warmup", "ema", "views")


class Witness(BaseModel, frozen=True):
    """One leaderboard: how far it is, and what it says of the method that is advised."""

    source: str
    name: str
    decades: float | None = Field(description="factors of ten in the trait that differs most; null: not comparable")
    how_far: str
    near: bool
    seeds: int
    train_samples: int
    points: float | None = Field(default=None, description="the method's, on that validation split")
    against_kd: Comparison | None = Field(default=None, description="on the validation split, over all methods there")
    on_test: Comparison | None = Field(default=None, description="against plain kd, where it was the choice there")


class Advice(BaseModel, frozen=True):
    """`method` None: no evidence is near, and nothing is claimed."""

    traits: Traits
    method: str | None
    shown: bool = Field(default=False, description="whether a test split near by shows it better than plain kd")
    gain: float | None = Field(default=None, description="points over plain kd to expect, a mean weighted by nearness")
    training: dict[str, Any] = Field(default={}, description="to paste into a pass of a recipe")
    witnesses: tuple[Witness, ...]


def advise(traits: Traits, evidence: Sequence[Evidence]) -> Advice:
    """The method with the largest gain over plain KD in the evidence near a task.

    Each method's gain is the mean of its measured differences from plain KD, weighted by exp(-(decades / 0.5)^2 / 2)
    (a kernel regression of the score on the distance; AutoDistiller, arXiv:2109.11105, fits such a function of data set
    and pipeline; the kernel and its width are ours). Only what a near leaderboard chose on its validation split and
    its test split shows better than plain KD may take plain KD's place: a gain alone can be luck.
    """
    distances = [distance(traits, one.board.traits) for one in evidence]
    near = [
        (one.board, far.decades)
        for one, far in zip(evidence, distances, strict=True)
        if far.near and _row(one.board, PLAIN_KD) is not None  # nothing to compare with, else
    ]
    if not near:
        return Advice(traits=traits, method=None, witnesses=_witnesses(evidence, traits, None))
    choices = [(board, board.choice.name) for board, _ in near if board.choice is not None]
    proven = [name for board, name in choices if _on_test(board, name)]
    gains = {name: _gain(name, near) for name in dict.fromkeys(proven) if _usable(name, near)}
    chosen = max(gains, key=lambda name: gains[name], default=PLAIN_KD)
    if gains.get(chosen, 0.0) <= 0:
        chosen = PLAIN_KD
    board = next(board for board, _ in sorted(near, key=lambda one: one[1]) if _row(board, chosen) is not None)
    return Advice(
        traits=traits,
        method=chosen,
        shown=chosen != PLAIN_KD,
        gain=gains.get(chosen, 0.0),
        training=_training(board, chosen),
        witnesses=_witnesses(evidence, traits, chosen),
    )


def traits_of_recipe(recipe: Recipe, keep_macs: float, emit: Emit = silent) -> Traits:
    """The traits of a recipe's task, with the student that `kdc bench distill` would train. Nothing is trained."""
    inputs = load(recipe, allow_torchscript=True)  # no other teacher is called
    emit(Note("looking at the data and the teacher"))
    with scratch_folder("advise") as folder:
        bench = Bench(inputs.teacher, inputs.data, inputs.task, inputs.device, folder)
        context = bench.context(recipe.seed, bench.cache, bench.cache, inputs.teacher.model)
        student = bench.student(narrowed(inputs.teacher, context, keep_macs), "pruned", recipe.seed)
    answers: torch.Tensor = predict(inputs.teacher.model, inputs.data.validation)
    return traits_of(inputs.teacher, inputs.teacher.with_model(student), inputs.data, inputs.task, answers)


def _on_test(board: Leaderboard, name: str | None) -> Comparison | None:
    """The test split's word against plain KD, where this method was the choice and is shown better."""
    if board.choice is None or board.choice.name != name:
        return None
    found = board.choice.against.get(PLAIN_KD)
    return found if found is not None and found.verdict == "better" else None


def _row(board: Leaderboard, name: str) -> Row | None:
    return next((row for row in board.rows if row.name == name and row.failed is None), None)


def _gain(name: str, near: Sequence[tuple[Leaderboard, float]]) -> float:
    weights, gains = [], []
    for board, decades in near:
        row = _row(board, name)
        if row is not None and PLAIN_KD in row.against:
            weights.append(math.exp(-((decades / BANDWIDTH) ** 2) / 2))
            gains.append(row.against[PLAIN_KD].points)
    return sum(w * g for w, g in zip(weights, gains, strict=True)) / sum(weights)


def _usable(name: str, near: Sequence[tuple[Leaderboard, float]]) -> bool:
    """Whether this kdc knows all that the method is made of: a leaderboard may be of another version."""
    for board, _ in near:
        if _row(board, name) is not None:
            try:
                Training.model_validate(_whole(board, name))
            except ValidationError:
                return False
    return True


def _whole(board: Leaderboard, name: str) -> dict[str, Any]:
    row = board.row(name)
    return {**board.training, **row.training, "objectives": list(row.objectives)}


def _training(board: Leaderboard, name: str) -> dict[str, Any]:
    """The schedule that was measured and the method's own keys, without what is the default anyway."""
    training = Training.model_validate(_whole(board, name))
    plain, default = training.model_dump(mode="json"), Training().model_dump(mode="json")
    own = board.row(name).training
    found = {key: plain[key] for key in plain if key in SCHEDULE or (key in own and plain[key] != default[key])}
    objectives: list[dict[str, Any]] = []
    for one in training.objectives:
        fields: dict[str, Any] = one.model_dump(mode="json")
        told: dict[str, Any] = {key: fields[key] for key in ("kind", "weight") if key in fields}
        changed = {key: value for key, value in fields.items() if value != type(one).model_fields[key].default}
        objectives.append({**told, **changed})
    return {**found, "objectives": objectives}


def _witnesses(evidence: Sequence[Evidence], traits: Traits, name: str | None) -> tuple[Witness, ...]:
    found = []
    for one in evidence:
        far, row = distance(traits, one.board.traits), None if name is None else _row(one.board, name)
        found.append(
            Witness(
                source=one.source,
                name=one.board.name,
                decades=None if math.isinf(far.decades) else far.decades,
                how_far=str(far),
                near=far.near,
                seeds=len(one.board.seeds),
                train_samples=one.board.traits.train_samples,
                points=None if row is None else row.figures[VALIDATION].points,
                against_kd=None if row is None else row.against.get(PLAIN_KD),
                on_test=_on_test(one.board, name),
            )
        )
    return tuple(sorted(found, key=lambda witness: math.inf if witness.decades is None else witness.decades))
