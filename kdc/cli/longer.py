"""`kdc profile --sustained` and its sweeps: another question than how long one run takes, and another answer."""

from __future__ import annotations

import json as text
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from kdc.core.device import Device
    from targets.sizes import Point


class Longer(NamedTuple):
    """What was asked for, as typed; all None: neither."""

    sustained: str | None
    batches: str | None
    threads: str | None


def run_longer(
    asked: Longer,
    files: Sequence[Path],
    shapes: Sequence[str],
    device: Device,
    inputs: Sequence[Any] | None,
    *,
    seconds: float,
    seed: int,
    json: bool,
) -> bool:
    """Run what was asked for and print it; False where neither was.

    Raises: TargetError where both were, or a second file was named.
    """
    if asked == Longer(None, None, None):
        return False
    from kdc.core.errors import TargetError
    from targets.door.enter import entered
    from targets.door.shapes import parse_shapes
    from targets.parts import ready
    from targets.sustained import parse_seconds, sentences, sustain

    if len(files) > 1 or (asked.sustained and (asked.batches or asked.threads)):
        raise TargetError(
            "--sustained and sweeps (--batches, --threads) take one file, and one of the two at a time",
            do="run kdc profile once for each",
        )
    with entered(files, parse_shapes(shapes), real_inputs=inputs is not None) as paths:
        file = ready(paths[0], device)
        if asked.sustained:
            found = sustain(file, device, parse_seconds(asked.sustained), inputs, seed=seed)
            found = found.model_copy(update={"path": files[0]})
            typer.echo(found.model_dump_json() if json else "\n".join(sentences(found)))
        else:
            points = _swept(asked, paths[0], device, inputs, seconds, seed)
            if json:
                typer.echo(text.dumps([point.model_dump(mode="json") for point in points]))
            else:
                _print(points, files[0].name, device.name)
    return True


def _swept(
    asked: Longer, path: Path, device: Device, inputs: Sequence[Any] | None, seconds: float, seed: int
) -> list[Point]:
    from targets.cascade import is_cascade
    from targets.door.examine import examine
    from targets.parts import ready
    from targets.sizes import check_batches, parse_sizes, sweep

    batches = parse_sizes(asked.batches, "--batches") if asked.batches else (device.batch,)
    threads = parse_sizes(asked.threads, "--threads") if asked.threads else (device.threads,)
    if asked.batches and path.suffix == ".onnx" and not is_cascade(path):
        check_batches([port.shape for port in examine(path).inputs], batches)
    return sweep(lambda at: ready(path, at), device, batches, threads, inputs, seconds=seconds, seed=seed)


def _print(points: Sequence[Point], name: str, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, title=f"{name} on {target}", title_justify="left")
    for column in ("threads", "batch", "median, ms", "95% interval", "samples a second"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            str(point.threads),
            str(point.batch),
            f"{point.median_ms:.4g}",
            f"{point.low_ms:.4g} – {point.high_ms:.4g}",
            f"{point.per_s:,.4g}" if point.per_s < 1e4 else f"{point.per_s:,.0f}",
        )
    console.print(table)
    for note in sorted({note for point in points for note in point.notes}):
        console.print(f"note: {note}")
