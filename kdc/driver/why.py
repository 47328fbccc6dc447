"""Why a step would be served from the store, or done again: its key's parts beside those of what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.core.errors import PlanError
from kdc.core.store import Entry, Parts, Store, key_of
from kdc.driver import folder
from kdc.driver.compress import identity
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import Recipe
from kdc.driver.steps import root_parts, step_parts


@dataclass(frozen=True)
class Reason:
    """Whether a step is stored under today's key; else what differs from the nearest entry, one line each."""

    step: str
    stored: bool
    changes: tuple[str, ...]


def why(recipe: Recipe, out: Path, step: str | None) -> list[Reason]:
    """The reason for every step of the recipe's plan, or for one.

    Raises: PlanError where the plan has no such step.
    """
    folder.check(out, identity(recipe))
    inputs = load(recipe)
    plan = make(recipe.passes, inputs.device)
    store = Store(out / folder.PRIVATE / "store")
    reasons: list[Reason] = []
    known = [planned.label for planned in plan.compress]
    if step is not None and step not in known:
        raise PlanError(f"the plan has no step {step!r}", do="its steps are " + ", ".join(known))
    previous, before = key_of(root_parts(inputs)), "teacher"
    for planned in plan.compress:
        parts = step_parts(planned.settings, previous, inputs)
        previous = key_of(parts)
        reasons.append(_reason(planned.label, parts, store, before))
        before = planned.label
    return [reason for reason in reasons if step in (None, reason.step)]


def _reason(step: str, parts: Parts, store: Store, before: str) -> Reason:
    if store.find(step, key_of(parts)) is not None:
        return Reason(step, True, ())
    entries = store.entries(step)
    if not entries:
        return Reason(step, False, ("it was never finished in this folder",))
    nearest: Entry = min(entries, key=lambda entry: len(list(_changes(entry.parts, parts, ""))))
    lines = tuple(
        f"the step before it, {before}, is done again" if name == "previous" else f"{name}: {was} → {now}"
        for name, was, now in _changes(nearest.parts, parts, "")
    )
    return Reason(step, False, lines)


def _changes(was: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, stored value, today's value) of each leaf that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from _changes(was.get(key, "absent"), now.get(key, "absent"), f"{name}.{key}" if name else key)
    elif was != now:
        yield name, was, now
