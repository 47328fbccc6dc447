"""`kdc build`: an ONNX file as the file that a target's runtime loads, made where it need not be able to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from targets.runtime import Layer


def build(
    file: Annotated[Path, typer.Argument(help="an ONNX file")],
    *,
    out: Annotated[Path, typer.Option(help="the folder that the target's files are written into")],
    target: Annotated[str, typer.Option(help="a name from `kdc targets`, or a profile's .toml")] = "cpu-ort",
    layers: Annotated[bool, typer.Option("--layers", help="print what the runtime makes of the model too")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite files in --out that kdc did not write")] = False,
) -> None:
    """Make the file that a target's runtime loads, and say whether it can be run here."""
    from kdc.core.errors import TargetError
    from targets.built import build_into
    from targets.device import load_device
    from targets.runtime import Inspects, runtime_of, slow_part

    device = load_device(target)
    runtime = runtime_of(device)
    if layers and not isinstance(runtime, Inspects):
        raise TargetError(f"target {target}: {device.runtime} does not tell its layers", do="leave --layers out")
    built = build_into(out, file, runtime, device, force=force)
    for path in runtime.files(built):
        print(f"{path}  {path.stat().st_size:,} bytes")
    if layers and isinstance(runtime, Inspects):
        _table(runtime.layers(file, device))
    slow = slow_part(runtime, built)
    if slow is not None:
        print(slow)
    reason = runtime.cannot_run(device)
    if reason is not None:
        print(f"built, and not run: {reason}")


def _table(layers: tuple[Layer, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("layer", "kind", "formats"):
        table.add_column(column, overflow="fold")
    for layer in layers:
        table.add_row(layer.name, layer.kind, ", ".join(layer.formats))
    Console(highlight=False, markup=False).print(table)
