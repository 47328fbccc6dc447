"""Which exits pay: learned at all candidate places, calibrated, timed, and chosen together with their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx, nn

from kdc.core.artifact import Artifact
from kdc.core.budget import Cost
from kdc.core.cascade import Cascade, confidence
from kdc.core.contract import Context
from kdc.core.errors import KdcError
from kdc.core.observe import Note
from kdc.distill.teacher import points, predict
from kdc.tasks.classification import expected_calibration_error
from passes.route import Exit, Exits
from passes.route.heads import assemble, classes_of
from passes.route.learn import LEARNED, AllAnswers, keep, learn
from passes.route.stages import Cut, cuts, find, graph_of
from passes.route.thresholds import UNUSED, Choice, best_subset, temperature

if TYPE_CHECKING:
    from passes.route import Route

Array = np.ndarray[Any, Any]

SHARES = (0.1, 0.8)
"""Where exits are looked for: earlier ones know too little, later ones save too little."""
MOST_CANDIDATES = 5


@dataclass(frozen=True)
class _Candidate:
    """One exit as it was learned, on the validation split."""

    cut: Cut
    exit: Exit
    points: float
    confidences: Array  # [n]
    scores: Array  # [n]
    found: dict[str, Any]


@dataclass(frozen=True)
class _Priced:
    """One exit's costs where it is the only one."""

    candidate: _Candidate
    reach_ms: float
    overhead_ms: float


def decide(settings: Route, artifact: Artifact[nn.Module], context: Context) -> Exits:
    """Learn, calibrate, time, choose; what was learned stays in the step's work folder for `tune`.

    Raises: ModelError where the model cannot be split, or an exit's name fits no place; the forecasts' own error where
    no exit can be timed.
    """
    classes_of(artifact)
    graph = graph_of(artifact.model, artifact.inputs)
    every = cuts(graph, artifact.inputs)
    places = _named(every, settings.exits) if settings.exits else _spread(every)
    planned = [
        Exit(after=cut.name, head=settings.head, channels=cut.channels, threshold=UNUSED, temperature=1.0)
        for cut in places
    ]
    cascade = assemble(graph, artifact, every, planned)
    learn(cascade, context.sets_aside(1 + 2 * len(places)), settings)
    keep(cascade, context.work / LEARNED)
    validation = context.data.validation
    incoming = points(predict(artifact.model, validation), validation, context)
    candidates, last = _calibrated(cascade, list(zip(places, planned, strict=True)), context)
    last_points = 100 * float(last.mean())
    gained = last_points - incoming  # by what the model learned with its exits
    if gained < 0:
        context.emit(
            Note(
                f"{context.step}: with its exits trained, the model without early exits has {last_points:.2f} points of "
                f"{context.task.metric}; it came with {incoming:.2f}"
            )
        )
    kept = _in_time(_above_chance(candidates, context), context)
    if not kept and context.gave_up("timing"):
        return Exits(exits=())
    plain_ms, priced = _priced(kept, graph, artifact, every, context)
    subset, choice = best_subset(
        [p.candidate.confidences for p in priced],
        [*(p.candidate.scores for p in priced), last],
        [p.reach_ms for p in priced],
        [p.overhead_ms for p in priced],
        plain_ms,
        max_exits=settings.max_exits,
        max_drop=None if settings.max_drop is None else settings.max_drop + max(gained, 0.0),
        mean_latency_ms=settings.mean_latency_ms,
    )
    pays = bool(subset) and choice.mean_ms < plain_ms
    choice = replace(choice, drop_points=choice.drop_points - gained)  # below the model as it came
    _record(context, candidates, priced, subset if pays else (), choice, plain_ms, incoming, last_points)
    if not pays:
        context.emit(Note(f"{context.step}: no early exit lowers the mean latency of {plain_ms:.4f} ms; none is kept"))
        return Exits(exits=())
    exits = tuple(
        priced[place].candidate.exit.model_copy(update={"threshold": threshold})
        for place, threshold in zip(subset, choice.thresholds, strict=True)
    )
    context.emit(Note(f"{context.step}: {_told(exits, choice, plain_ms)}"))
    return Exits(exits=exits)


def _named(every: Sequence[Cut], names: Sequence[str]) -> list[Cut]:
    wanted = {find(every, name).name for name in names}
    return [cut for cut in every if cut.name in wanted]


def _spread(every: Sequence[Cut]) -> list[Cut]:
    """At most five places, evenly spaced by how much of the work stands before them."""
    low, high = SHARES
    inside = [cut for cut in every if low <= cut.share <= high]
    if not inside:  # one layer does nearly all: the place that is nearest
        return [min(every, key=lambda cut: max(low - cut.share, cut.share - high))]
    if len(inside) <= MOST_CANDIDATES:
        return inside
    targets = np.linspace(inside[0].share, inside[-1].share, MOST_CANDIDATES)
    nearest = {min(range(len(inside)), key=lambda i: abs(inside[i].share - target)) for target in targets}
    return [inside[i] for i in sorted(nearest)]


def _calibrated(
    cascade: Cascade, places: Sequence[tuple[Cut, Exit]], context: Context
) -> tuple[list[_Candidate], Array]:
    """Every exit with its temperature, and the last stage's scores [n]."""
    calibration, validation = context.data.calibration, context.data.validation
    known, seen = (predict(AllAnswers(cascade), split) for split in (calibration, validation))
    labels = validation.labels.numpy()
    candidates: list[_Candidate] = []
    for place, (cut, exit_) in enumerate(places):
        degrees = float(f"{temperature(known[:, place].numpy(), calibration.labels.numpy()):.4g}")
        before, after = seen[:, place], seen[:, place] / degrees
        scores = context.task.scores(after.numpy(), labels)
        own_points = 100 * float(scores.mean())
        found = {
            "after": cut.name,
            "macs_share": cut.share,
            "points": own_points,
            "temperature": degrees,
            "calibration_error_before": expected_calibration_error(before.numpy(), labels),
            "calibration_error_after": expected_calibration_error(after.numpy(), labels),
        }
        calibrated = exit_.model_copy(update={"temperature": degrees})
        candidates.append(_Candidate(cut, calibrated, own_points, confidence(after).numpy(), scores, found))
    return candidates, context.task.scores(seen[:, -1].numpy(), labels)


def _above_chance(candidates: Sequence[_Candidate], context: Context) -> list[_Candidate]:
    chance = context.task.chance(context.data)
    for candidate in candidates:
        candidate.found["above_chance"] = candidate.points > chance
        if candidate.points <= chance:
            context.emit(
                Note(
                    f"{context.step}: the exit behind {candidate.cut.name} is removed: {candidate.points:.2f} points of "
                    f"{context.task.metric}, and a constant guess has {chance:.2f}"
                )
            )
    return [candidate for candidate in candidates if candidate.points > chance]


def _in_time(candidates: list[_Candidate], context: Context) -> list[_Candidate]:
    """Those that there is time to forecast, two files each beside the plain model's: the ones with the most points."""
    deadline = context.deadline
    if deadline is None or deadline.left() >= (1 + 2 * len(candidates)) * deadline.model_seconds:
        return candidates
    count = max(0, int((deadline.left() / max(deadline.model_seconds, 1e-3) - 1) / 2))
    context.give_up("timing", f"{count} of {len(candidates)} exits were timed")
    best = sorted(candidates, key=lambda candidate: -candidate.points)[:count]
    return [candidate for candidate in candidates if candidate in best]


def _priced(
    candidates: Sequence[_Candidate],
    graph: fx.GraphModule,
    artifact: Artifact[nn.Module],
    every: Sequence[Cut],
    context: Context,
) -> tuple[float, list[_Priced]]:
    """The plain model's latency in ms, and each exit's costs. An exit that cannot be lowered is left out, said so.

    Raises: the forecast's error where the model itself or every exit cannot be lowered.
    """
    artifacts = [artifact]
    for candidate in candidates:
        for threshold in (0.0, UNUSED):  # every input leaves here; every input goes on
            single = candidate.exit.model_copy(update={"threshold": threshold})
            artifacts.append(artifact.with_model(assemble(graph, artifact, every, [single])))
    plain, *costs = context.forecasts(artifacts)
    if isinstance(plain, KdcError):
        raise plain
    priced: list[_Priced] = []
    errors: list[KdcError] = []
    for candidate, leaves, goes_on in zip(candidates, costs[::2], costs[1::2], strict=True):
        if isinstance(leaves, Cost) and isinstance(goes_on, Cost):
            priced.append(_Priced(candidate, leaves.latency_ms, goes_on.latency_ms - plain.latency_ms))
            continue
        error = leaves if isinstance(leaves, KdcError) else goes_on
        assert isinstance(error, KdcError)
        errors.append(error)
        context.emit(Note(f"{context.step}: the exit behind {candidate.cut.name} is left out: {error}"))
    if errors and not priced:
        raise errors[0]
    return plain.latency_ms, priced


def _record(
    context: Context,
    candidates: Sequence[_Candidate],
    priced: Sequence[_Priced],
    subset: Sequence[int],
    choice: Choice,
    plain_ms: float,
    incoming: float,
    last_points: float,
) -> None:
    """The step's findings; latencies in ms, scores in points, shares 0 to 1."""
    chosen = [priced[place].candidate.cut.name for place in subset]
    thresholds = dict(zip(chosen, choice.thresholds, strict=True)) if subset else {}
    shares = dict(zip(chosen, choice.shares[:-1], strict=True)) if subset else {}
    costs = {p.candidate.cut.name: {"reach_ms": p.reach_ms, "overhead_ms": p.overhead_ms} for p in priced}
    rows = [
        {
            **candidate.found,
            **costs.get(candidate.cut.name, {}),
            "kept": candidate.cut.name in thresholds,
            "threshold": thresholds.get(candidate.cut.name),
            "share": shares.get(candidate.cut.name, 0.0),
        }
        for candidate in candidates
    ]
    overhead_ms = sum(max(priced[place].overhead_ms, 0.0) for place in subset)
    context.find(
        "exits",
        {
            "candidates": rows,
            "incoming_points": incoming,
            "last_points": last_points,
            "last_share": choice.shares[-1] if subset else 1.0,
            "plain_ms": plain_ms,
            "last_exit_ms": plain_ms + overhead_ms,
            "mean_ms": choice.mean_ms if subset else plain_ms,
            "drop_points": choice.drop_points if subset else 0.0,
            "met": choice.met,
        },
    )


def _told(exits: Sequence[Exit], choice: Choice, plain_ms: float) -> str:
    leaving = ", ".join(
        f"{share:.1%} of the inputs leave behind {exit_.after}"
        for share, exit_ in zip(choice.shares[:-1], exits, strict=True)
    )
    missed = "" if choice.met else "; that is the least, and more than the mean latency asked for"
    return (
        f"{leaving}; mean latency {choice.mean_ms:.4f} ms of {plain_ms:.4f} ms, "
        f"{choice.drop_points:+.2f} points lost on the validation split{missed}"
    )
