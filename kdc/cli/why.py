"""`kdc why`: what would be served from the store, what would be done again, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdc.cli.flags import takes_recipe

if TYPE_CHECKING:
    from kdc.driver.recipe import Recipe


@takes_recipe
def why(
    recipe: Recipe,
    *,
    out: Annotated[Path, typer.Option(help="the folder of the run")],
    step: Annotated[str | None, typer.Option(help="only this step")] = None,
) -> None:
    """Say of each step whether it is stored, or what changed since it was."""
    from kdc.driver.why import why as reasons

    for reason in reasons(recipe, out, step):
        print(f"{reason.step}: " + ("stored" if reason.stored else "would be done again"))
        for change in reason.changes:
            print(f"  {change}")
