"""`kdc passes`: the passes, one pass's settings, or what one of its settings can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

FAMILY, KIND = "family", "kind"  # what tells the models of a union apart
Line = tuple[str, str, str]


def passes(
    name: Annotated[str | None, typer.Argument(help="show this pass's settings")] = None,
    part: Annotated[
        str | None, typer.Argument(help="a setting that has kinds, as objectives; or a kind, as kd")
    ] = None,
) -> None:
    """List the passes; with a name, its settings with defaults and sources; with a part, what that one can be."""
    from kdc.core.errors import UserError
    from passes import PASSES

    if name is None:
        for kind, one in PASSES.items():
            print(f"{kind:<10} {_summary(one)}")
        return
    if name not in PASSES:
        raise UserError(f"there is no pass {name!r}", do="known passes: " + ", ".join(PASSES))
    if part is None:
        _show(_whole(PASSES[name]), _rows(PASSES[name](), "", name))
        return
    kinds = _kinds(PASSES[name]())
    if part in kinds:
        _show(f"{part} of {name}: `kdc passes {name} KIND` shows one with its settings", map(_line, kinds[part]))
        return
    models = {_label(model): model for group in kinds.values() for model in group}
    if part not in models:
        known = ", ".join(kinds) or "none"
        raise UserError(f"{name} has no {part!r}", do=f"settings that have kinds: {known}; or name one of those kinds")
    _show(_whole(models[part]), _fields(models[part]))


def _show(title: str, rows: Iterable[Line]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(title + "\n", markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "default", "what it is"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _rows(settings: BaseModel, prefix: str, of: str) -> Iterator[Line]:
    """Settings with their defaults; of those that have kinds, the kinds' names."""
    from pydantic import BaseModel

    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        name = prefix + key
        kinds = _choices(field.annotation, KIND)
        if isinstance(value, BaseModel):
            yield name, "", field.description or _summary(type(value))
            yield from _rows(value, name + ".", of)
        elif isinstance(value, tuple) and kinds:
            yield name, "" if value else "none", field.description or ""
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _rows(item, f"{name}.{i}.", of)
                else:
                    yield f"{name}.{i}", str(item), ""
        else:
            yield name, _plain(value), field.description or ""
            for kind in _choices(field.annotation, FAMILY) if value is None else ():
                yield f"{name}: {_label(kind, FAMILY)}", "", _summary(kind)
                yield from (("  " + own, default, what) for own, default, what in _fields(kind, FAMILY))
        if kinds:
            yield "", "", f"kinds, `kdc passes {of} {key}`: {', '.join(map(_label, kinds))}"


def _kinds(settings: BaseModel) -> dict[str, list[type[BaseModel]]]:
    """The kinds of each setting that has some, by the setting's own name."""
    from pydantic import BaseModel

    found: dict[str, list[type[BaseModel]]] = {}
    for key, field in type(settings).model_fields.items():
        value, kinds = getattr(settings, key), _choices(field.annotation, KIND)
        if kinds:
            found.setdefault(key, kinds)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, BaseModel):
                found = {**_kinds(inner), **found}
    return found


def _fields(model: type[BaseModel], mark: str = KIND) -> Iterator[Line]:
    """A kind's settings."""
    for key, field in model.model_fields.items():
        if key != mark:
            yield key, "given" if field.is_required() else _plain(field.default), field.description or ""


def _line(kind: type[BaseModel]) -> Line:
    """A kind in one row, its settings as they would stand in a recipe."""
    fields = ((key, default) for key, default, _ in _fields(kind))
    return _label(kind), ", ".join(f"{key}: {default}" for key, default in fields), _summary(kind)


def _choices(annotation: Any, mark: str) -> list[type[BaseModel]]:
    """The models of a union that is told apart by this field, wherever it stands in an annotation."""
    if isinstance(annotation, type) and mark in getattr(annotation, "model_fields", {}):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _choices(part, mark)]


def _label(kind: type[BaseModel], mark: str = KIND) -> str:
    return str(next(iter(get_args(kind.model_fields[mark].annotation))))


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0]


def _whole(kind: type) -> str:
    from inspect import cleandoc

    return "\n\n".join(" ".join(part.split()) for part in cleandoc(kind.__doc__ or "").split("\n\n"))
