"""Why a step would be served from the store, or done again: its key's parts beside those of what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdc.core.errors import PlanError
from kdc.core.store import Entry, Parts, Store, key_of
from kdc.driver import folder
from kdc.driver.compress import identity
from kdc.driver.inputs import Inputs, load
from kdc.driver.keys import root_parts, step_parts
from kdc.driver.plan import Planned, make
from kdc.driver.recipe import Recipe
from kdc.driver.steps import find_step


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
    store = Store(out / folder.PRIVATE / "store")
    inputs = load(recipe, store, allow_torchscript=True)  # other teachers are read for their digests, and not called
    plan = make(recipe.passes, inputs.device)
    teacher = _Link("teacher", key_of(root_parts(inputs)), {}, "")
    chain = [teacher, *_chain([(planned.label, planned) for planned in plan.compress], teacher, inputs, store)]
    links = [link for one in chain for link in (one, *_chain(plan.lowered(one.name), one, inputs, store))][1:]
    known = [link.name for link in links]
    if step is not None and step not in known:
        raise PlanError(f"the plan has no step {step!r}", do="its steps are " + ", ".join(known))
    return [_reason(link, store) for link in links if step in (None, link.name)]


class _Link(NamedTuple):
    """A step as today's recipe would make it; `before` is the name of the step it follows."""

    name: str
    key: str
    parts: Parts
    before: str


def _chain(steps: Sequence[tuple[str, Planned]], link: _Link, inputs: Inputs, store: Store) -> list[_Link]:
    links: list[_Link] = []
    for name, planned in steps:
        parts = step_parts(planned.settings, link.key, inputs, planned.after)
        parts, _ = find_step(store, name, parts, inputs)
        link = _Link(name, key_of(parts), parts, link.name)
        links.append(link)
    return links


def _reason(link: _Link, store: Store) -> Reason:
    if store.find(link.name, link.key) is not None:
        return Reason(link.name, True, ())
    entries = store.entries(link.name)
    if not entries:
        return Reason(link.name, False, ("it was never finished in this folder",))
    nearest: Entry = min(entries, key=lambda entry: len(list(_changes(entry.parts, link.parts, ""))))
    lines = tuple(_line(link, *change) for change in _changes(nearest.parts, link.parts, ""))
    return Reason(link.name, False, lines)


def _line(link: _Link, name: str, was: Any, now: Any) -> str:
    if name == "previous":
        return f"the step before it, {link.before}, is done again"
    if name == "compile_minutes":
        return f"what is stored was shortened to fit into compile_minutes {was:g}"
    return f"{name}: {_told(was)} → {_told(now)}"


def _told(value: Any) -> str:
    """As a recipe has it: 60000.0 is 60000, and a pass that came or went is not spelt out."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return "present" if isinstance(value, dict) else str(value)


def _changes(was: Any, now: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, stored value, today's value) of each leaf that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from _changes(was.get(key, "absent"), now.get(key, "absent"), f"{name}.{key}" if name else key)
    elif was != now:
        yield name, was, now
