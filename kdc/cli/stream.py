"""`kdc profile --stream`: whether a model keeps up with its stream, and how late its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from kdc.core.device import Device
    from targets.stream import Streamed


def run_stream(
    chunk: str,
    states: Sequence[str],
    path: Path,
    shapes: Sequence[str],
    device: Device,
    chunks: Sequence[Any] | None,
    *,
    seconds: float,
    timeout: float,
    seed: int,
    html: Path | None,
    json: bool,
) -> None:
    """Run one file on a stream and print what was found. Args: chunk, states, shapes: as typed."""
    from kdc.cli.looks import put_page
    from targets.door.enter import entered
    from targets.door.shapes import parse_shapes
    from targets.page.stream import render_stream
    from targets.parts import ready
    from targets.states import parse_states
    from targets.stream import parse_chunk, streamed

    chunk_ns, carried = parse_chunk(chunk), parse_states(states)
    with entered([path], parse_shapes(shapes), real_inputs=chunks is not None) as paths:
        file = ready(paths[0], device)
        found = streamed(
            file, device, chunk_ns, chunks, carried, seconds=seconds, timeout_seconds=timeout, seed=seed
        ).model_copy(update={"path": path})
    if html is not None:
        put_page(html, render_stream(found, target=_where(found, device.name)))
    if json:
        typer.echo(found.model_dump_json())
    else:
        _print(found, device.name)


def _where(found: Streamed, target: str) -> str:
    place = found.environment.get("device")
    return target if place is None else f"{target} at {place}"


def _print(found: Streamed, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from targets.stream import ROWS, cells, sentence

    console = Console(highlight=False, markup=False)
    console.print(f"{found.path.name} on {_where(found, target)}, a chunk is {found.chunk_ms:g} ms")
    table = Table(box=None, pad_edge=False)
    for column in ("", "at the stream's pace", "back to back"):
        table.add_column(column, justify="right" if column else "left")
    for name, *row in zip(ROWS, cells(found.paced), cells(found.back_to_back), strict=True):
        table.add_row(name, *row)
    table.add_row("late chunks", f"{found.late:,} of {found.paced.n:,}", "")
    table.add_row("longest until done, ms", f"{found.answer_worst_ms:.4g}", "")
    console.print(table)
    console.print(sentence(found))
    carried = ", ".join(f"{output} to {taken}" for output, taken in found.states)
    console.print(f"states carried from one chunk to the next: {carried or 'none'}")
    for note in found.notes:
        console.print(f"note: {note}")
