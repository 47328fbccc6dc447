"""`kdc profile --sustained`, its sweeps and `--stream`: another question than how long one run takes, and another answer."""

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
    """What was asked for, as typed; all as they stand here: nothing."""

    sustained: str | None = None
    batches: str | None = None
    threads: str | None = None
    stream: str | None = None
    states: tuple[str, ...] = ()

    def flag(self) -> str:
        """The first that was typed."""
        names = ("--sustained", "--batches", "--threads", "--stream", "--state")
        return next(name for name, value in zip(names, self, strict=True) if value)


def run_longer(
    asked: Longer,
    files: Sequence[Path],
    shapes: Sequence[str],
    device: Device,
    inputs: Sequence[Any] | None,
    *,
    seconds: float,
    timeout: float,
    seed: int,
    html: Path | None,
    json: bool,
) -> bool:
    """Run what was asked for and print it; False where nothing was.

    Raises: TargetError where several were, or a second file was named.
    """
    if asked == Longer():
        return False
    from kdc.cli.stream import run_stream
    from kdc.core.errors import TargetError
    from targets.door.enter import entered
    from targets.door.shapes import parse_shapes
    from targets.parts import ready
    from targets.sustained import parse_seconds, sentences, sustain

    questions = (asked.sustained, asked.batches or asked.threads, asked.stream)
    if len(files) > 1 or len([one for one in questions if one]) > 1:
        raise TargetError(
            "--sustained, --stream and sweeps (--batches, --threads) take one file, and one of them at a time",
            do="run kdc profile once for each",
        )
    if asked.states and asked.stream is None:
        raise TargetError("--state is of a stream's chunks", do="add the time that one covers, such as --stream 10ms")
    if asked.stream is not None:
        run_stream(
            asked.stream,
            asked.states,
            files[0],
            shapes,
            device,
            inputs,
            seconds=seconds,
            timeout=timeout,
            seed=seed,
            html=html,
            json=json,
        )
        return True
    if html is not None:
        raise TargetError("--html draws runs, not --sustained, --batches or --threads", do="leave it out")
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
