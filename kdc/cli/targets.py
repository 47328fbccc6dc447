"""`kdc targets`: the devices, or one device's profile."""

from __future__ import annotations

from typing import Annotated

import typer


def targets(
    name: Annotated[str | None, typer.Argument(help="show this target's profile; a path of a .toml too")] = None,
) -> None:
    """List the targets; with a name, all that its profile says and where it is from."""
    from rich.console import Console
    from rich.table import Table

    from targets.device import load_device, names

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    if name is None:
        for known in names():
            table.add_row(known, load_device(known).summary)
    else:
        fields = load_device(name).model_dump()
        fields |= {f"quantization.{key}": value for key, value in (fields.pop("quantization") or {}).items()}
        for key, value in fields.items():
            table.add_row(key, _text(value))
    console.print(table)


def _text(value: object) -> str:
    if value is None or value in ("", ()):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
