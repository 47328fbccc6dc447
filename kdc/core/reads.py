"""What a pass reads of its context: recorded field by field, and held to what the pass declares.

A step is stored under a key. What its pass reads must be part of that key, or a stored result is served that another
budget, another target or other data would not have given. Each field of `Context` is one of three kinds:

- in every step's key (`IN_KEY`);
- of no influence on the result (`HARMLESS`);
- declared by the pass (`DECLARED`): the budget's fields by `Pass.reads`, measurements by `Pass.measures`.

An undeclared read fails the step. A declaration that is never read is allowed: the step is then done again more often
than it must be. The test split is in no pass's reach: it judges the student once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import PrivateAttr

from kdc.core.artifact import Artifact
from kdc.core.budget import Budget, Cost
from kdc.core.contract import Context, Pass
from kdc.core.data import Split
from kdc.core.errors import KdcError, LawError

IN_KEY = frozenset({"step", "device", "task", "data", "teacher", "seed"})
"""`step` is part of the entry's name; `data` and `teacher` are there by their digests and their source."""
HARMLESS = frozenset(
    {"work", "cache", "cache_root", "cache_bytes", "emit", "again", "joins", "allow_torchscript", "deadline"}
)
"""A deadline is in the key of the step where something was given up for it: `kdc.driver.steps.shortened`."""
DECLARED = {"budget": "reads", "forecasts": "measures", "teacher_cost": "measures"}

_FIELDS = frozenset(Budget.model_fields)


class Reads:
    """What one pass has read so far in one step, and whether it had declared it."""

    def __init__(self, step: str, settings: Pass[Any], budget: Budget) -> None:
        self.budget: set[str] = set()
        """Names of the budget's fields that were read."""
        self.measured = False
        """Whether a forecast or the teacher's cost was asked for."""
        self._who = f"{step}: {type(settings).__name__}"
        self._declared, self._measures = frozenset(settings.reads(budget)), settings.measures(budget)
        self._undeclared: LawError | None = None

    def check(self) -> None:
        """Raises: LawError where something undeclared was read, even if the pass caught the error at that time."""
        if self._undeclared is not None:
            raise self._undeclared

    def of_budget(self, names: Iterable[str]) -> None:
        """Fields are read. Raises: LawError for one that the pass does not declare."""
        names = frozenset(names)
        self.budget |= names
        if missing := sorted(names - self._declared):
            fields = ", ".join(f"budget.{name}" for name in missing)
            self._fail(
                f"{self._who} reads {fields}, which its reads() does not name: its stored result would be served under "
                "another budget",
                "return " + ", ".join(map(repr, missing)) + " from reads() for these settings, or do not read it",
            )

    def of_target(self, what: str) -> None:
        """A measurement is asked for. Raises: LawError where the pass does not declare that it measures."""
        self.measured = True
        if not self._measures:
            self._fail(
                f"{self._who} asks for context.{what}, and its measures() is false: its stored result would be served on "
                "another machine",
                "return True from measures() for these settings and this budget, or do not ask",
            )

    def of_test(self) -> None:
        """The test split is read. Raises: LawError always."""
        self._fail(
            f"{self._who} reads context.data.test: the test split judges the student once, at the end of the run",
            "use the validation or the calibration split",
        )

    def _fail(self, message: str, do: str) -> None:
        error = LawError(message, do=do)
        self._undeclared = self._undeclared or error
        raise error


def watched(context: Context, settings: Pass[Any]) -> tuple[Context, Reads]:
    """The same context, and the record of what the pass reads of it.

    The record goes along with every copy (`dataclasses.replace`, `Context.named`) and every thread.
    """
    reads = Reads(context.step, settings, context.budget)

    def forecasts(artifacts: Sequence[Artifact[Any]]) -> list[Cost | KdcError]:
        reads.of_target("forecasts")
        return context.forecasts(artifacts)

    def teacher_cost() -> Cost:
        reads.of_target("teacher_cost")
        return context.teacher_cost()

    data = replace(context.data, test=_Unseen(reads.of_test))
    budget = _WatchedBudget.of(context.budget, reads)
    return replace(context, budget=budget, data=data, forecasts=forecasts, teacher_cost=teacher_cost), reads


def budget_parts(settings: Pass[Any], budget: Budget) -> dict[str, Any]:
    """The budget's fields that a pass declares, as plain JSON values under the recipe's names.

    Raises: LawError where it declares one that the budget does not have.
    """
    names = set(settings.reads(budget))
    if unknown := sorted(names - _FIELDS):
        raise LawError(f"{type(settings).__name__}.reads() names {unknown}, which the budget does not have")
    return budget.model_dump(mode="json", by_alias=True, include=names)


class _WatchedBudget(Budget, frozen=True, extra="forbid"):
    """A budget that records its reads. One that takes all fields (a dump, a copy, a comparison) reads all of them."""

    _reads: Reads = PrivateAttr()

    @classmethod
    def of(cls, budget: Budget, reads: Reads) -> _WatchedBudget:
        """The same values. They are not validated again: they are a budget's."""
        made = cls.__new__(cls)
        object.__setattr__(made, "__dict__", dict(vars(budget)))
        object.__setattr__(made, "__pydantic_fields_set__", set(budget.model_fields_set))
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", {"_reads": reads})
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS or name == "__dict__":  # pydantic takes all values at once from `__dict__`
            reads: Reads = object.__getattribute__(self, "__pydantic_private__")["_reads"]
            reads.of_budget([name] if name in _FIELDS else _FIELDS)
        return object.__getattribute__(self, name)

    def __eq__(self, other: object) -> bool:
        return _plain(self) == (_plain(other) if isinstance(other, _WatchedBudget) else other)

    def __hash__(self) -> int:
        return hash(_plain(self))

    def model_dump_json(self, **options: Any) -> str:
        """As `BaseModel` does it; there an error on the way would come out as one of pydantic's."""
        vars(self)
        return super().model_dump_json(**options)

    def __reduce__(self) -> Any:
        """Another process cannot record: what is sent there counts as read, and arrives as a plain budget."""
        return Budget.model_validate, (self.model_dump(by_alias=True),)

    def __repr_name__(self) -> str:
        return "Budget"


def _plain(budget: _WatchedBudget) -> Budget:
    return Budget.model_validate(budget.model_dump(by_alias=True))


class _Unseen(Split):
    """A split without samples: to look into it fails, to hand it on does not."""

    def __init__(self, fail: Callable[[], None]) -> None:
        object.__setattr__(self, "_fail", fail)

    def __getattribute__(self, name: str) -> Any:
        if name in ("inputs", "labels"):
            object.__getattribute__(self, "_fail")()
        return object.__getattribute__(self, name)

    def __repr__(self) -> str:
        return "the test split, which no pass sees"
