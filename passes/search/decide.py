"""The order of a search: the smallest members, the breeding, the short distillations, and the record of it all."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.contract import Context, named_seed
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from passes.search.breed import breed
from passes.search.examine import Examiner
from passes.search.journal import Candidate, Journal, front
from passes.search.judge import judge
from passes.search.members import Members
from passes.search.spaces import ShrunkSpace, Space, describe

if TYPE_CHECKING:
    from passes.search import Search, Structure


def decide(settings: Search, artifact: Artifact[nn.Module], context: Context) -> Structure:
    """As `Search.decide`."""
    from passes.search import Structure

    members = Members(artifact, _spaces(settings, artifact, context), context.seed)
    members.check()
    journal = Journal(context.work / "candidates.jsonl")
    examiner = Examiner(settings, artifact, context, members, journal)
    nearest = examiner.nearest_misfit()
    if nearest is not None:
        context.find("candidates", [one.row(front=False, chosen=one.key == nearest.key) for one in journal.all()])
        return Structure(student=nearest.student, seed=context.seed)
    pool = breed(settings, context, members, examiner)
    if not pool:
        raise ModelError(
            f"{context.step}: no candidate fits the budget", do="raise search.population, or loosen a limit"
        )
    known = journal.all()
    context.emit(Note(f"{context.step}: {len(pool)} of {len(known)} candidates fit the budget"))
    winner = judge(_finalists(pool, settings, context), settings, context, members, journal)
    known = journal.all()
    best = front(known)
    context.find("ranking", settings.ranking)
    context.find("candidates", [one.row(front=one.key in best, chosen=one.key == winner.key) for one in known])
    context.emit(Note(f"{context.step}: {describe(winner.student)}"))
    return Structure(student=winner.student, seed=context.seed)


def _finalists(pool: list[Candidate], settings: Search, context: Context) -> list[Candidate]:
    """The best ranks, and as many by chance from the rest: breeding drives a ranking to where it is wrong."""
    ranked = pool[: (settings.finalists + 1) // 2]
    rest = pool[len(ranked) :]
    random = Random(named_seed(context.seed, context.step, "finalists"))
    return [*ranked, *random.sample(rest, min(len(rest), settings.finalists - len(ranked)))]


def _spaces(settings: Search, artifact: Artifact[nn.Module], context: Context) -> tuple[Space, ...]:
    """The recipe's spaces, or those that can take the model's inputs; widths aligned as the device has it."""
    from passes.search import DEFAULT_SPACES

    spaces = settings.spaces
    if spaces is None:
        spaces = tuple(space for space in DEFAULT_SPACES if _can_take(space, artifact, context))
    aligned = {"alignment": context.device.channel_alignment}
    return tuple(
        space.model_copy(update=aligned) if isinstance(space, ShrunkSpace) and space.alignment is None else space
        for space in spaces
    )


def _can_take(space: Space, artifact: Artifact[nn.Module], context: Context) -> bool:
    if isinstance(space, ShrunkSpace):
        return True  # the model's own inputs; whether there is anything to shrink is for `check` to say
    try:
        Members(artifact, (space,), context.seed).check()
    except ModelError as error:
        context.emit(Note(f"{context.step}: left out: {str(error).splitlines()[0]}"))
        return False
    return True
