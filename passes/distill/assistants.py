"""Models between teacher and student in size: the teacher with fewer channels, each taught by the one above."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.core.writing import read_checked, write_checked
from kdc.distill.loop import train
from kdc.distill.settings import Training
from kdc.distill.teacher import reached, taught_by
from passes.prune import Prune

if TYPE_CHECKING:
    from passes.distill import Assistants

Portion = Callable[[Context, float], Context]
SMALL_GAP = 4.0  # times fewer parameters; below it a student can mostly follow the teacher itself
CHOSEN = "assistants.json"


def assistants(
    settings: Assistants, training: Training, student: Artifact[Any], context: Context, portion: Portion
) -> Iterator[nn.Module]:
    """The trained assistants, the largest first.

    Args: portion: a context with the share of the time left that a training of so many epochs has.
    Raises: ModelError where the teacher has no insides that could be cut.
    """
    teacher = _teacher(student, context)
    gap = _parameters(teacher.model) / max(1, _parameters(student.model))
    if gap < SMALL_GAP:
        context.emit(
            Note(
                f"{context.step}: the student has {gap:.1f} times fewer parameters than the teacher: assistants are "
                f"meant for larger gaps, {SMALL_GAP:g} and more"
            )
        )
    training = settings.training or training
    shares = settings.keep_macs
    if shares == "auto":
        shares = (_tried(settings, training, teacher, gap, context, portion),)
    for number, share in enumerate(shares):
        own = context.named(f"assistant-{number}")
        made = train(_cut(teacher, share, own).model, portion(own, training.epochs), training)
        context.emit(Note(f"{own.step}: {share:.1%} of the teacher's MACs, {reached(made, context):.2f} points"))
        yield made
        context = taught_by(context, made)


def _tried(
    settings: Assistants, training: Training, teacher: Artifact[Any], gap: float, context: Context, portion: Portion
) -> float:
    """The share of the assistant to choose, by a short training of each candidate.

    The assistant to take is the one that costs the least accuracy for each parameter it saves: the largest value of
    -(points of the teacher - points of the candidate) / (parameters of the teacher - those of the candidate).
    Source: AMD, Han et al. 2024, arXiv:2407.04208; the paper's own text could not be read: the rule is as remembered, and
    the equal ratios of the sizes are ours. It trains its candidates in one network with shared weights, here each alone.
    """
    path = context.work / CHOSEN
    if os.path.lexists(path):
        share: float = read_checked(path)["share"]
        return share
    short = training.model_copy(update={"epochs": settings.trial_epochs})
    above, size = reached(teacher.model, context), _parameters(teacher.model)
    tried = []
    for number in range(settings.candidates):
        share = gap ** (-(number + 1) / (settings.candidates + 1))
        own = context.named(f"trial-{number}")
        model = train(_cut(teacher, share, own).model, portion(own, short.epochs), short)
        score, left = reached(model, context), _parameters(model)
        if left >= size:
            continue  # nothing of it could be cut
        tried.append({"share": share, "points": score, "parameters": left, "value": (score - above) / (size - left)})
    if not tried:
        raise ModelError(
            f"{context.step}: no channel of the teacher can be removed: it has no smaller assistant",
            do="leave `assistants` out of the distill step",
        )
    best = max(tried, key=lambda row: (row["value"], row["share"]))
    context.find("assistants", [{**row, "chosen": row is best} for row in tried])
    write_checked(path, {"share": best["share"]})
    return best["share"]


def _cut(teacher: Artifact[Any], share: float, context: Context) -> Artifact[Any]:
    """The teacher with this share of its multiply-accumulates, not yet trained."""
    prune = Prune(keep_macs=share)
    context.work.mkdir(parents=True, exist_ok=True)
    silent = replace(context, emit=lambda event: None)  # the channels of a helper's layers are of no interest
    made: Artifact[Any] = prune.apply(teacher, prune.decide(teacher, silent))
    return made


def _teacher(student: Artifact[Any], context: Context) -> Artifact[Any]:
    model = context.teacher
    if not any(True for _ in model.parameters()):
        raise ModelError(
            f"{context.step}: assistants are the teacher with fewer channels, and this teacher can only be asked",
            do="leave `assistants` out of the distill step, or give the teacher as a torch model",
        )
    return Artifact(model, student.inputs, student.outputs)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
