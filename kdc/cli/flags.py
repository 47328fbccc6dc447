"""The flags that name a recipe, or make one: shared by `compress`, `plan` and `why`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from kdc.driver.recipe import Recipe


def _recipe(
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="a recipe.yaml; flags override it")] = None,
    *,
    teacher: Annotated[str | None, typer.Option(metavar="FILE.py:NAME", help="what builds the teacher")] = None,
    weights: Annotated[Path | None, typer.Option(help=".safetensors, or .pt/.pth of plain tensors")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE.py:NAME", help="what loads the data")] = None,
    target: Annotated[str | None, typer.Option(help="a name from `kdc targets`, or a profile's .toml")] = None,
    max_latency: Annotated[
        list[str] | None, typer.Option(metavar="0.4ms[@cold]", help="median, batch 1, on the target, hot or cold")
    ] = None,
    min_speedup: Annotated[float | None, typer.Option(metavar="TIMES", help="over the teacher, lower bound")] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="POINTS", help="below the teacher's metric")] = None,
    max_size: Annotated[str | None, typer.Option(metavar="300kB", help="of the file that ships")] = None,
    max_macs: Annotated[float | None, typer.Option(metavar="2e6", help="multiply-accumulates of one sample")] = None,
    max_memory: Annotated[str | None, typer.Option(metavar="8MB", help="peak, over the runtime's own")] = None,
    max_minutes: Annotated[float | None, typer.Option(metavar="MINUTES", help="for the whole run")] = None,
    seed: Annotated[int | None, typer.Option(help="of every random draw")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key, as passes.0.keep_macs=0.5")
    ] = None,
) -> Recipe:
    """The recipe of a file and flags, or of flags alone."""
    from kdc.core.errors import RecipeError
    from kdc.driver.recipe import load_recipe, parse_latencies, parse_size
    from passes import PASSES

    if recipe is None and (teacher is None or data is None):
        raise RecipeError("no recipe", do="name a recipe.yaml, or give at least --teacher and --data")
    flags: dict[str, Any] = {
        "teacher.build": teacher,
        "teacher.weights": None if weights is None else str(weights),
        "data.load": data,
        "target": target,
        **{f"budget.{key}": limit_ms for key, limit_ms in parse_latencies(max_latency or []).items()},
        "budget.min_speedup": min_speedup,
        "budget.max_drop": max_drop,
        "budget.size_mb": None if max_size is None else parse_size(max_size),
        "budget.macs": max_macs,
        "budget.peak_memory_mb": None if max_memory is None else parse_size(max_memory),
        "budget.compile_minutes": max_minutes,
        "seed": seed,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    return load_recipe(recipe, given, settings or [], PASSES)


AllowTorchscript = Annotated[
    bool, typer.Option("--allow-torchscript", help="call TorchScript files of training.teachers: they can write files")
]


def takes_recipe(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose first parameter is a Recipe becomes a command with all the flags above and the verb's own."""
    own = list(inspect.signature(verb).parameters.values())[1:]
    shared = inspect.signature(_recipe).parameters

    def command(**given: Any) -> None:
        made = _recipe(**{name: value for name, value in given.items() if name in shared})
        verb(made, **{parameter.name: given[parameter.name] for parameter in own})

    hints = _hints(verb) | _hints(_recipe)  # the verb's own `recipe` is the value, the shared one the flag
    parameters = [p.replace(annotation=hints[p.name]) for p in (*shared.values(), *own)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    return command


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    # Importing Recipe would cost every `kdc --help` a quarter of a second; it is no flag.
    return get_type_hints(function, localns={"Recipe": object}, include_extras=True)
