"""`kdc passes`: the passes, or one pass's settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

FAMILY = "family"  # what tells the models of a union apart


def passes(name: Annotated[str | None, typer.Argument(help="show this pass's settings")] = None) -> None:
    """List the passes; with a name, its settings with defaults and sources."""
    from rich.console import Console
    from rich.table import Table

    from kdc.core.errors import UserError
    from passes import PASSES

    console = Console(highlight=False)
    if name is None:
        for kind, one in PASSES.items():
            print(f"{kind:<10} {_summary(one)}")
        return
    if name not in PASSES:
        raise UserError(f"there is no pass {name!r}", do="known passes: " + ", ".join(PASSES))
    console.print((PASSES[name].__doc__ or "").strip() + "\n")
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "default", "what it is"):
        table.add_column(column)
    for row in _rows(PASSES[name](), ""):
        table.add_row(*row)
    console.print(table)


def _rows(settings: BaseModel, prefix: str) -> Iterator[tuple[str, str, str]]:
    from pydantic import BaseModel

    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        name = prefix + key
        if isinstance(value, BaseModel):
            yield name, "", field.description or _summary(type(value))
            yield from _rows(value, name + ".")
        elif isinstance(value, tuple) and value and all(isinstance(item, BaseModel) for item in value):
            yield name, "", field.description or ""
            for i, item in enumerate(value):
                yield from _rows(item, f"{name}.{i}.")
        else:
            yield name, "–" if value is None else str(value), field.description or ""
            for kind in _choices(field.annotation) if value is None else ():
                label = next(iter(get_args(kind.model_fields[FAMILY].annotation)))
                yield f"{name}: {label}", "", _summary(kind)
                for own, part in kind.model_fields.items():
                    if own != FAMILY:
                        default = "given" if part.is_required() else str(part.default)
                        yield f"  {own}", default, part.description or ""


def _choices(annotation: Any) -> list[type[BaseModel]]:
    """The models of a union that is told apart by `family`, wherever it stands in an annotation."""
    if isinstance(annotation, type) and FAMILY in getattr(annotation, "model_fields", {}):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _choices(part)]


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0]
