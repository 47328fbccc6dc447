"""Short distillations: the worse half leaves, the rest goes on for twice as long, until one is left.

The best structure under plain training is often not the best under distillation, so that candidates are judged by the
loop that will train the winner. Source: successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943, algorithm 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import DamagedError, ModelError
from kdc.core.observe import Note
from kdc.core.weights import load_checkpoint, save_checkpoint
from kdc.distill.loop import train
from kdc.distill.settings import Training
from kdc.distill.teacher import points, predict
from passes.search.journal import Candidate, Journal
from passes.search.members import Members
from passes.search.spaces import describe

if TYPE_CHECKING:
    from passes.search import Search

WINNER = "winner.safetensors"


def judge(
    finalists: list[Candidate], settings: Search, context: Context, members: Members, journal: Journal
) -> Candidate:
    """The candidate that is best on the validation split; its weights so far lie in the step's work folder.

    Where the time is over, the best so far: by its points, or by its rank where none was distilled.
    Raises: ModelError where every finalist fails in training.
    """
    alive, round_ = finalists, 0
    timed = context.portion(settings.judging_epochs(), settings.training.epochs)
    while len(alive) > 1:
        if timed.out_of_time(f"round {round_}", f"{round_} rounds of short distillations"):
            break
        judged: list[Candidate] = []
        for one in alive:
            told = f"{len(judged)} of {len(alive)} candidates in round {round_ + 1} of the short distillations"
            if judged and timed.out_of_time(f"candidate {len(judged)} of round {round_}", told):
                break
            judged.append(_distilled(one, round_, settings, timed, members, journal))
        working = [one for one in judged if one.failure is None]
        if not working:
            raise ModelError(f"{context.step}: every candidate failed in training: {judged[0].failure}")
        # Of equal points the one of fewer operations goes on.
        working.sort(key=lambda one: (-one.points[round_], one.macs, one.key))
        alive = working[: max(1, len(alive) // 2)]
        best = alive[0]
        context.emit(
            Note(f"{context.step}: {len(alive)} of {len(judged)} stay after {settings.epochs * 2**round_} epochs; best "
                 f"{best.points[round_]:.2f}: {describe(best.student)}")
        )  # fmt: skip
        round_ += 1
    winner = alive[0]
    weights = context.work / f"{winner.key}.safetensors"
    kept = load_checkpoint(weights)
    if kept is not None:
        save_checkpoint(kept[0], context.work / WINNER)
    return winner


def trained(model: nn.Module, context: Context, training: Training) -> nn.Module:
    """The student trained to its end, from where its short distillation left it if its weights are here."""
    kept = load_checkpoint(context.work / WINNER)
    if kept is not None:
        state = kept[0]
        own = model.state_dict()
        # The decision may have been edited since: another structure starts from its first weights.
        if {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in own.items()}:
            model.load_state_dict(state)
    return train(model, context, training)


def _distilled(
    candidate: Candidate, round_: int, settings: Search, context: Context, members: Members, journal: Journal
) -> Candidate:
    """The candidate with the points of this round, trained now unless it was before."""
    if len(candidate.points) > round_:
        return candidate
    part = context.named(f"{candidate.key}.{round_}")
    weights = context.work / f"{candidate.key}.safetensors"
    model = members.build(candidate.student)
    if round_ > 0:
        kept = load_checkpoint(weights)
        if kept is None:
            raise DamagedError(f"{weights.name} is missing")
        model.load_state_dict(kept[0])
    training = settings.training.model_copy(update={"epochs": settings.epochs * 2**round_})
    context.emit(Note(f"{context.step}: distilling {describe(candidate.student)}"))
    try:
        model = train(model, part, training)
    except ModelError as error:
        return _noted(journal, candidate.model_copy(update={"failure": str(error).splitlines()[0]}))
    split = context.data.validation
    found = points(predict(model, split), split, context)
    save_checkpoint(model.state_dict(), weights)
    return _noted(journal, candidate.model_copy(update={"points": (*candidate.points, found)}))


def _noted(journal: Journal, candidate: Candidate) -> Candidate:
    journal.put(candidate)
    return candidate
