"""`kdc advise distill`: which objectives to train with, and on what evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdc.driver.advise import Advice, Witness

advise = typer.Typer(help="Advice, with its evidence.", no_args_is_help=True, rich_markup_mode=None)


@advise.callback()
def _advise() -> None:
    """Advice, with its evidence."""


@advise.command()
def distill(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="a recipe.yaml: its teacher and data")
    ] = None,
    *,
    leaderboard: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="a leaderboard.json of your own, beside kdc's")
    ] = None,
    keep_macs: Annotated[float, typer.Option(help="the share of the teacher's MACs that the student may have")] = 0.03,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key of the recipe")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress on stderr")] = False,
    json: Annotated[bool, typer.Option("--json", help="print the advice as JSON")] = False,
) -> None:
    """Name the objectives and the schedule that leaderboards near your task speak for, or say that none is near.

    Without a RECIPE, the task is that of the first --leaderboard.
    """
    from kdc.cli.show import observer
    from kdc.core.errors import UserError
    from kdc.driver.recipe import load_recipe
    from passes import PASSES

    if recipe is None and not leaderboard:
        raise UserError("no task to advise on", do="name a recipe.yaml, or give a --leaderboard")
    loaded = None if recipe is None else load_recipe(recipe, {}, settings or [], PASSES)
    from kdc.driver.advise import advise as made
    from kdc.driver.advise import traits_of_recipe
    from kdc.driver.evidence import read, shipped

    own = read(leaderboard or [])
    if loaded is None:
        traits = own[0].board.traits
    else:
        with observer(quiet=quiet, log=None) as emit:
            traits = traits_of_recipe(loaded, keep_macs, emit)
    advice = made(traits, [*own, *shipped()])
    if json:
        print(advice.model_dump_json(indent=1))
    else:
        _show(advice, recipe)


def _show(advice: Advice, recipe: Path | None) -> None:
    traits = advice.traits
    _print(
        f"task: {traits.task}, {traits.classes} classes, {traits.samples_per_class:.0f} training samples a class; "
        f"{traits.family} teacher, {traits.teacher_points:.1f} points on validation, {traits.teacher_train_points:.1f} on "
        f"training samples; its answers' entropy is {traits.teacher_entropy:.1%} of the most; student "
        f"{traits.student_macs / 1e6:.3g} of {traits.teacher_macs / 1e6:.3g} MMACs"
    )
    near = [witness for witness in advice.witnesses if witness.near]
    print(f"evidence: {_count(near)} near this task, of {len(advice.witnesses)} known")
    for witness in advice.witnesses:
        _print(f"- {_words(witness, advice.method)}", indent="  ")
    if advice.method is None:
        _print(
            "no advice: what was measured elsewhere says nothing of this task; to make evidence of your own: "
            f"kdc bench distill {recipe or 'RECIPE'}"
        )
        return
    if advice.shown:
        _print(f"advice: {advice.method}, {advice.gain:+.2f} points over plain kd to expect, shown better there")
    else:
        _print("advice: plain kd; nothing near this task is shown better than it")
    print("\ntraining:")
    print("\n".join(_yaml(advice.training)))


def _count(near: list[Witness]) -> str:
    return "no leaderboard" if not near else "one leaderboard" if len(near) == 1 else f"{len(near)} leaderboards"


def _words(witness: Witness, method: str | None) -> str:
    known = f"{witness.name} ({witness.source}; {witness.seeds} seeds, {witness.train_samples} training samples)"
    if not witness.near:
        return f"{known}: too far: {witness.how_far}"
    said = f"{known}: {witness.how_far}"
    if witness.points is not None:
        said += f"; {method} has {witness.points:.2f} on validation"
    if witness.against_kd is not None:
        one = witness.against_kd
        said += f", {one.points:+.2f} [{one.low:+.2f}, {one.high:+.2f}] against plain kd"
    if witness.on_test is not None:
        one = witness.on_test
        said += f"; on test {one.points:+.2f} [{one.low:+.2f}, {one.high:+.2f}], p = {one.p_holm:.2g}"
    return said


def _yaml(training: dict[str, Any]) -> list[str]:
    lines = [f"  {key}: {_plain(value)}" for key, value in training.items() if key != "objectives"]
    return [*lines, "  objectives:", *(f"    - {_plain(one)}" for one in training["objectives"])]


def _plain(value: Any) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return str(text).removesuffix("...\n").strip()


def _print(text: str, indent: str = "") -> None:
    import os
    import textwrap

    width = min(80, int(os.environ.get("COLUMNS", "80")))
    print(textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
