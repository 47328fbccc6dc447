"""`kdc targets`: the devices, or one device's profile."""

from __future__ import annotations

from typing import Annotated

import typer

from kdc.core.errors import TargetError

USAGE = "kdc targets; kdc targets show NAME"


def targets(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[show NAME]",
            help="nothing: the list; show: all that a profile says. NAME may be a path of a .toml too",
        ),
    ] = None,
) -> None:
    """List the targets, or show one."""
    from rich.console import Console
    from rich.table import Table

    from kdc.cli.show_target import show_target
    from targets.device import load_device, names

    console = Console(highlight=False, markup=False)
    given = list(words or [])
    if not given:
        table = Table(box=None, pad_edge=False, show_header=False)
        for known in names():
            table.add_row(known, load_device(known).summary)
        console.print(table)
        return
    verb = given.pop(0) if given[0] in {"show"} else "show"
    if len(given) != 1:
        raise TargetError(f"`kdc targets {verb}` takes one target, got {len(given)}", do=USAGE)
    show_target(console, load_device(given[0]))
