"""What a candidate is before anything is trained: its size, its rank, its cost on the target, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.budget import Cost, within
from kdc.core.contract import Context, named_seed
from kdc.core.errors import BudgetError, KdcError, ModelError
from kdc.core.observe import Progress
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

    def check_floor(self) -> None:
        """See that the smallest member of some space fits. Raises: BudgetError that says what the smallest costs."""
        smallest = self.look(self.members.smallest())
        if any(candidate.fits for candidate in smallest):
            return
        working = [candidate for candidate in smallest if candidate.failure is None]
        if not working:
            raise ModelError(f"{self.context.step}: no space has a member that can be built: {smallest[0].failure}")
        floor = min(working, key=lambda c: (c.cost.latency_ms if c.cost else 0.0, c.macs))
        costs = [f"{floor.macs / 1e6:.3g} million MACs"]
        if floor.cost is not None:
            if floor.cost.peak_memory_mb is not None:
                costs.append(f"{floor.cost.peak_memory_mb:.3g} MB of memory")
            if floor.cost.cold_ms is not None:
                costs.append(f"{floor.cost.cold_ms:.4g} ms cold")
            costs += [f"{floor.cost.latency_ms:.4g} ms", f"{floor.cost.size_mb:.3g} MB"]
        raise BudgetError(
            f"{self.context.step}: no student of these spaces meets the budget ({self._limits()}): the smallest, "
            f"{describe(floor.student)}, takes {', '.join(costs)}",
            do="loosen that limit, or add a space with smaller members to search.spaces",
        )

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

    def _limits(self) -> str:
        budget, spare = self.context.budget, 1 - self.settings.headroom
        told: list[str] = []
        if budget.latency_ms is not None:
            told.append(f"latency_ms {budget.latency_ms:g}")
        if budget.latency_ms_cold is not None:
            told.append(f"latency_ms@cold {budget.latency_ms_cold:g}")
        if budget.min_speedup is not None:
            limit_ms = self.context.teacher_cost().latency_ms / budget.min_speedup
            told.append(f"min_speedup {budget.min_speedup:g}, which is {limit_ms:.4g} ms")
        if budget.size_mb is not None:
            told.append(f"size_mb {budget.size_mb:g}")
        if budget.macs is not None:
            told.append(f"macs {budget.macs:g}")
        if budget.peak_memory_mb is not None:
            told.append(f"peak_memory_mb {budget.peak_memory_mb:g}")
        if self.most_macs < float("inf"):
            told.append(f"keep_macs: {self.most_macs / 1e6:.3g} million")
        return ", ".join(told) + (f"; {1 - spare:.0%} of each is kept free" if spare < 1 else "")


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
