"""`kdc compress`: a recipe in, a proven student out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdc.cli import BEGAN
from kdc.cli.flags import AllowTorchscript, takes_recipe

if TYPE_CHECKING:
    from kdc.driver.recipe import Recipe
    from kdc.driver.report import Report


@takes_recipe
def compress(
    recipe: Recipe,
    *,
    out: Annotated[Path, typer.Option(help="the folder of the results; a run that stopped goes on in it")],
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress on stderr")] = False,
    log: Annotated[Path | None, typer.Option(help="write every event as a line of JSON")] = None,
    cache_gb: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="GB", help="for the teacher's answers [a quarter of the free disk, at most 50]; 0: none"
        ),
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="a folder of the teacher's answers that runs share")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="overwrite files in --out, and a --log, that kdc did not write")
    ] = False,
    allow_torchscript: AllowTorchscript = False,
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Compress a teacher to a budget: student.onnx and the report of how it was made and measured."""
    from kdc.cli.show import observer

    with observer(quiet=quiet, log=log, force=force) as emit:
        from kdc.driver.compress import compress as run
        from kdc.driver.steps import Kept

        kept = Kept(teacher_cache, cache_gb)
        report = run(recipe, out, emit, kept, BEGAN, force=force, allow_torchscript=allow_torchscript)
    from kdc.cli.table import show

    if json:
        print(report.model_dump_json(indent=1))
    else:
        show(report, out)
    end(report, out)


def end(report: Report, out: Path) -> None:
    """Raise the error that a run ends with whose budget is not met: it names each limit that binds."""
    from kdc.core.errors import BudgetError

    if not report.met:
        raise BudgetError(
            f"the budget is not met: {report.binding()}",
            do=f"the nearest student is in {out}; loosen that limit, or give the passes more to work with",
        )
