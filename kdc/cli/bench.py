"""`kdc bench distill`: which objective trains the best student of a recipe's teacher, shown with controls and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kdc.cli.flags import AllowTorchscript

bench = typer.Typer(help="Compare methods by training with each of them.", no_args_is_help=True, rich_markup_mode=None)


@bench.callback()
def _bench() -> None:
    """Compare methods by training with each of them."""


@bench.command()
def distill(
    recipe: Annotated[Path, typer.Argument(help="a recipe.yaml: its teacher, its data, its longest training")],
    *,
    out: Annotated[Path, typer.Option(help="the folder of the trainings and of leaderboard.json")] = Path("runs/bench"),
    seeds: Annotated[int, typer.Option(min=2, help="trainings of each method")] = 5,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="objectives, strategies, or `strategies` for all of those; default: all objectives"
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="default: the recipe's")] = None,
    keep_macs: Annotated[float, typer.Option(help="the student's share of the teacher's MACs")] = 0.03,
    start: Annotated[
        Literal["fresh", "pruned"],
        typer.Option(help="the student's first weights: drawn by the seed, or the teacher's"),
    ] = "fresh",
    student: Annotated[str | None, typer.Option(metavar="FILE.py:NAME", help="what builds your own student")] = None,
    beside: Annotated[
        Literal["labels", "kd"], typer.Option(help="what stands beside each objective: labels x 0.1, or those and kd")
    ] = "labels",
    pipeline: Annotated[
        list[str] | None, typer.Option(metavar="NAME=YAML", help="a method of your own: keys of a recipe's training")
    ] = None,
    try_weights: Annotated[
        str | None, typer.Option(metavar="0.1,1,10", help="factors of each method's weights, chosen with a seed apart")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="of the training split; default: all")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="trainings at once; default: one a core")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key of the recipe")
    ] = None,
    allow_torchscript: AllowTorchscript = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress on stderr")] = False,
    log: Annotated[Path | None, typer.Option(help="write every event as a line of JSON")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="overwrite a leaderboard.json, and a --log, that kdc did not write")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print the leaderboard as JSON")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table as Markdown")] = False,
) -> None:
    """Train one small student by every objective and by controls, several seeds each, and test the differences.

    `--kinds strategies` compares the strategies instead, each beside plain KD.
    """
    from kdc.cli.show import observer
    from kdc.core.errors import KdcError
    from kdc.driver.recipe import load_recipe
    from passes import PASSES

    loaded = load_recipe(recipe, {}, settings or [], PASSES)
    with observer(quiet=quiet, log=log, force=force) as emit:
        from kdc.driver.leaderboard import Options, leaderboard
        from targets.proc import allowed_cores

        options = Options(
            seeds=seeds,
            kinds=None if kinds is None else tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
            epochs=epochs,
            keep_macs=keep_macs,
            start=start,
            student=student,
            beside=beside,
            pipelines=dict(map(_pipeline, pipeline or [])),
            try_weights=_factors(try_weights),
            samples=samples,
        )
        made = leaderboard(
            loaded, options, out, jobs or allowed_cores(), emit, force=force, allow_torchscript=allow_torchscript
        )
    from kdc.cli.standings import as_markdown, show

    if json:
        print(made.model_dump_json(indent=1))
    elif markdown:
        print(as_markdown(made))
    else:
        show(made, out)
    faults = {row.name: row.fault for row in made.rows if row.fault is not None}
    if faults:
        raise KdcError(
            f"{len(faults)} methods failed by a fault of kdc's own ({', '.join(faults)}); the first:\n"
            f"{next(iter(faults.values()))}",
            do="report it; the other methods' rows stand, and their trainings are kept",
        )


def _pipeline(text: str) -> tuple[str, dict[str, Any]]:
    import yaml

    from kdc.core.errors import UserError

    name, mark, body = text.partition("=")
    try:
        keys = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise UserError(f"--pipeline {name}: {error}", do="write YAML on one line, as in a recipe") from error
    if isinstance(keys, list):
        keys = {"objectives": keys}
    if not name or not mark or not isinstance(keys, dict):
        raise UserError(
            f"--pipeline {text!r} is no NAME=YAML",
            do="write --pipeline 'both=[{kind: labels, weight: 0.1}, {kind: kd}, {kind: hints}]'",
        )
    return name.strip(), keys


def _factors(text: str | None) -> tuple[float, ...]:
    from kdc.core.errors import UserError

    try:
        factors = tuple(float(part) for part in (text or "").split(",") if part.strip())
    except ValueError:
        factors = (-1.0,)
    if any(not 0 < factor < float("inf") for factor in factors):
        raise UserError(f"--try-weights {text!r} is no list of factors above 0", do="write --try-weights 0.1,1,10")
    return factors
