"""What a candidate is before anything is trained: its size, its rank, its cost on the target, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.budget import Cost, within
from kdc.core.contract import Context, named_seed
from kdc.core.errors import KdcError, ModelError
from kdc.core.observe import Note, Progress
from passes.search.journal import Candidate, Journal
from passes.search.members import Members
from passes.search.ranking import Reference, diswot
from passes.search.spaces import Student, describe, key

if TYPE_CHECKING:
    from passes.search import Search

FAILURES_LEAST = 4  # fewer say nothing of the space


class Examiner:
    """Looks at structures, each once; what it found is in the journal."""

    def __init__(
        self, settings: Search, artifact: Artifact[nn.Module], context: Context, members: Members, journal: Journal
    ) -> None:
        from passes.search import DEFAULT_KEEP_MACS

        self.settings, self.artifact, self.context = settings, artifact, context
        self.members, self.journal = members, journal
        self.looks = 0
        self.timed = settings.measures(context.budget)
        self._score = _ranking(settings, context)
        share = settings.keep_macs
        if share is None and not self.timed and context.budget.macs is None:
            share = DEFAULT_KEEP_MACS
        _, incoming = members.size(artifact.model)
        self.most_macs = float("inf") if share is None else share * incoming

    def look(self, students: Sequence[Student]) -> list[Candidate]:
        """What is known of these structures, finding out what is not. Those too large on paper are not timed.

        Raises: ModelError where more than half of all candidates so far could not be built or exported.
        """
        self.looks += 1
        different = {key(student): student for student in students}
        fresh = [student for student in different.values() if self.journal.find(student) is None]
        built = [self._built(student) for student in fresh]
        small = [one for one in built if one[0].failure is None and self._small(one[0])]
        costs: dict[str, Cost | KdcError] = {}
        if self.timed and small:
            artifacts = [self.artifact.with_model(model) for _, model in small]
            costs = dict(zip((c.key for c, _ in small), self.context.forecasts(artifacts), strict=True))
        if built:
            self.journal.put(*(self._priced(candidate, costs.get(candidate.key)) for candidate, _ in built))
        self._check_failures()
        everything = self.journal.all()
        self.context.emit(Progress(f"{self.context.step}: candidates", len(everything), self._expected(), "candidates"))
        return [found for student in students if (found := self.journal.find(student)) is not None]

    def nearest_misfit(self) -> Candidate | None:
        """None where the smallest member of some space fits; else the smallest that misses the limits by the least.

        Raises: ModelError where no space has a member that can be built.
        """
        smallest = self.look(self.members.smallest())
        if any(candidate.fits for candidate in smallest):
            return None
        working = [candidate for candidate in smallest if candidate.failure is None]
        if not working:
            raise ModelError(f"{self.context.step}: no space has a member that can be built: {smallest[0].failure}")
        spare = self.settings.headroom

        def overrun(candidate: Candidate) -> float:
            return max((value / limit for _, value, limit in self._bounds(candidate)), default=0.0)

        found = min(working, key=lambda one: (overrun(one), one.macs, one.key))
        over = [
            f"{name} is {value:.4g}, the limit {limit:.4g}"
            for name, value, limit in self._bounds(found)
            if value > limit * (1 - spare)
        ]
        text = (
            f"no student of these spaces meets the budget: the smallest, {describe(found.student)}, is taken "
            f"({', '.join(over)}" + (f"; {spare:.0%} of each limit is kept free)" if spare else ")")
        )
        self.context.emit(Note(f"{self.context.step}: {text}"))
        self.context.find("nearest", text)
        return found

    def hopeless(self, candidate: Candidate) -> bool:
        """Whether a candidate of the same family with no more layers and MACs was already found too slow.

        It only saves the time of measuring: nothing is accepted by it.
        """
        if not self._small(candidate):
            return True
        return any(
            known.family == candidate.family
            and known.cost is not None
            and not known.fits
            and known.layers <= candidate.layers
            and known.macs <= candidate.macs
            for known in self.journal.all()
        )

    def needless(self, candidate: Candidate) -> bool:
        """Whether one of its family that is larger in layers, MACs and parameters is known to fit.

        Capacity within the budget is what helps a student: without this most draws are far below the limit.
        """
        return any(
            known.family == candidate.family
            and known.fits
            and known.layers >= candidate.layers
            and known.macs >= candidate.macs
            and known.parameters > candidate.parameters
            for known in self.journal.all()
        )

    def sized(self, student: Student) -> Candidate:
        """A structure with its size alone; what keeps it from being built is its failure."""
        return self._built(student)[0]

    def _built(self, student: Student) -> tuple[Candidate, nn.Module]:
        try:
            model = self.members.build(student)
            parameters, macs = self.members.size(model)
            layers = sum(parameter.dim() > 1 for parameter in model.parameters())
            score = self._score(student, model, parameters)
        except KdcError as error:
            return Candidate(student=student, failure=_reason(error)), nn.Identity()
        return Candidate(student=student, parameters=parameters, macs=macs, layers=layers, score=score), model

    def _small(self, candidate: Candidate) -> bool:
        limit = self.context.budget.macs
        allowed = self.most_macs if limit is None else min(self.most_macs, limit * (1 - self.settings.headroom))
        return candidate.macs <= allowed

    def _priced(self, candidate: Candidate, cost: Cost | KdcError | None) -> Candidate:
        if candidate.failure is not None:
            return candidate
        if isinstance(cost, KdcError):
            return candidate.model_copy(update={"failure": _reason(cost)})
        fits = self._small(candidate)
        if cost is not None:
            fits = fits and within(cost, self.context.budget, self.context.teacher_cost, self.settings.headroom)
        elif self.timed:
            fits = False
        return candidate.model_copy(update={"cost": cost, "fits": fits})

    def _check_failures(self) -> None:
        everything = self.journal.all()
        failed = [candidate.failure for candidate in everything if candidate.failure is not None]
        if len(everything) >= FAILURES_LEAST and len(failed) > len(everything) / 2:
            usual = max(set(failed), key=failed.count)
            raise ModelError(
                f"{self.context.step}: {len(failed)} of {len(everything)} candidates failed, {failed.count(usual)} of "
                f"them with: {usual}",
                do="mend what builds them, or take that space out of search.spaces",
            )

    def _expected(self) -> int:
        settings = self.settings
        whole = settings.population + settings.generations * (settings.population // 2)
        return max(whole, len(self.journal.all()))

    def _bounds(self, candidate: Candidate) -> list[tuple[str, float, float]]:
        """What the candidate costs beside each limit: (name, value, limit)."""
        budget, cost = self.context.budget, candidate.cost
        found: list[tuple[str, float | None, float | None]] = [("macs", candidate.macs, budget.macs)]
        if self.most_macs < float("inf"):
            found.append(("MACs by keep_macs", candidate.macs, self.most_macs))
        if cost is not None:
            found += [
                ("latency_ms", cost.latency_ms, budget.latency_ms),
                ("latency_ms@cold", cost.cold_ms, budget.latency_ms_cold),
                ("size_mb", cost.size_mb, budget.size_mb),
                ("peak_memory_mb", cost.peak_memory_mb, budget.peak_memory_mb),
            ]
            if budget.min_speedup is not None:
                limit_ms = self.context.teacher_cost().latency_ms / budget.min_speedup
                found.append((f"latency_ms for min_speedup {budget.min_speedup:g}", cost.latency_ms, limit_ms))
        return [(name, value, limit) for name, value, limit in found if value is not None and limit is not None]


def _ranking(settings: Search, context: Context) -> Callable[[Student, nn.Module, int], float]:
    if settings.ranking == "diswot":
        some = context.data.train[: settings.samples]
        reference = Reference.of(context.teacher, some.inputs, some.labels)
        return lambda student, model, parameters: diswot(model, reference)
    if settings.ranking == "parameters":
        return lambda student, model, parameters: float(parameters)
    return lambda student, model, parameters: Random(
        named_seed(context.seed, context.step, "rank", key(student))
    ).random()


def _reason(error: Any) -> str:
    return str(error).splitlines()[0]
