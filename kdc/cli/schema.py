"""`kdc schema`: the JSON Schema of a recipe, for editors and checks."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of a recipe, with the settings of every pass."""
    from kdc.driver import recipe
    from passes import PASSES

    typer.echo(json.dumps(recipe.schema(PASSES), indent=2))
