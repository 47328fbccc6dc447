"""A course: several trainings in the one loop, one after the other, each with its own teacher and its own checkpoints.

A training that ended leaves its last checkpoint, so that a course that was killed passes over what is done.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.contract import Context
from kdc.core.observe import Note
from kdc.distill.loop import train
from kdc.distill.teacher import reached, taught_by
from passes.distill.assistants import assistants

if TYPE_CHECKING:
    from passes.distill import Distill


def run(settings: Distill, artifact: Artifact[Any], context: Context) -> nn.Module:
    """The trained student.

    Assistants stand between the teacher and the first generation; `stages` come before `training` in that generation
    alone; each later one begins with the weights that the first began with, and its teacher is the one before it.
    Source: Mirzadeh et al. 2020, arXiv:1902.03393 (assistants); Furlanello et al. 2018, arXiv:1805.04770 (generations;
    there each begins with fresh weights, here with those that the pass was given: fresh ones where nothing is trained).
    """
    begun = artifact.model
    rest = settings.training_epochs()  # of the trainings to come, by which a limited time is divided among them

    def portion(own: Context, epochs: float) -> Context:
        nonlocal rest
        rest = max(rest - epochs, 0.0)
        return own.portion(epochs, rest)

    if settings.assistants is not None:
        for model in assistants(settings.assistants, settings.training, artifact, context, portion):
            context = taught_by(context, model)
    student = copy.deepcopy(begun) if settings.generations > 1 else begun
    for number, stage in enumerate(settings.stages):
        student = train(student, portion(context.named(f"stage-{number}"), stage.epochs), stage)
    epochs = settings.training.epochs
    student = train(student, portion(context, epochs), settings.training)
    scores = [reached(student, context)]
    for number in range(1, settings.generations):
        if context.out_of_time(f"generation {number + 1}", f"no generation behind number {number}"):
            break
        own = taught_by(context, student).named(f"generation-{number + 1}")
        alone = settings.training.model_copy(update={"teachers": ("own",)})  # the generation before it
        before, student = student, train(copy.deepcopy(begun), portion(own, epochs), alone)
        scores.append(reached(student, context))
        if own.gave_up("schedule") and scores[-1] < scores[-2]:  # it was not trained to its end
            student = before
        context.emit(
            Note(
                f"{context.step}: generation {number + 1} reaches {scores[-1]:.2f}, the one before it {scores[-2]:.2f}"
            )
        )
    if settings.generations > 1:
        context.find("generations", scores)
    return student
