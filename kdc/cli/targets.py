"""`kdc targets`: the devices, one device's profile, or a calibration of this machine for estimates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdc.core.errors import TargetError

if TYPE_CHECKING:
    from rich.console import Console

    from targets.predictor.calibration import Calibration

USAGE = "kdc targets; kdc targets show NAME; kdc targets calibrate NAME"


def targets(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[show NAME | calibrate NAME]",
            help="nothing: the list; show: all that a profile says; calibrate: measure this machine so that latencies "
            "can be estimated. NAME may be a path of a .toml too",
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="calibrate: the most time to take")] = 5,
    out: Annotated[Path | None, typer.Option(help="calibrate: the file to write; default: in the user's cache")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="calibrate: overwrite a file at --out that is no calibration")
    ] = False,
) -> None:
    """List the targets, show one, or calibrate one on this machine."""
    from rich.console import Console

    from kdc.cli.show_target import show_target
    from targets.device import load_device, names

    console = Console(highlight=False, markup=False)
    given = list(words or [])
    if not given:
        _print(console, {known: load_device(known).summary for known in names()})
        return
    verb = given.pop(0) if given[0] in {"show", "calibrate"} else "show"
    if len(given) != 1:
        raise TargetError(f"`kdc targets {verb}` takes one target, got {len(given)}", do=USAGE)
    if verb == "show":
        show_target(console, load_device(given[0]))
    else:
        _calibrate(console, given[0], minutes, out, force=force)


def _calibrate(console: Console, name: str, minutes: float, out: Path | None, *, force: bool) -> None:
    from kdc.cli.show import observer
    from kdc.core.placing import check_place
    from targets.device import load_device
    from targets.predictor.calibrate import Effort, calibrate
    from targets.predictor.calibration import default_path, is_calibration, save

    device = load_device(name)
    path = out or default_path(device)
    check_place(path, "--out", is_calibration, force=force or out is None)
    with observer(quiet=False, log=None) as emit:
        found = calibrate(device, Effort(minutes=minutes), emit=emit)
    save(found, path)
    _print(console, _lines(found) | {"written": str(path)})


def _lines(found: Calibration) -> dict[str, str]:
    peaks = found.peaks
    lines = {
        "machine": f"{found.machine.cpu}, {found.machine.runtime} {found.machine.version}, "
        f"{found.machine.threads} thread(s)",
        "peak float32": f"{peaks.flops_per_s / 1e9:.0f} GFLOP/s",
        "peak int8": f"{(peaks.int8_ops_per_s or 0) / 1e9:.0f} Gop/s",
        "memory": f"{peaks.bytes_per_s / 1e9:.1f} GB/s read and written",
        "clock": f"{found.timer_ns:.0f} ns a step",
        "drift": f"{100 * found.run_noise:.1f}% from process to process",
        "noise": f"{100 * found.ratio_noise:.1f}% of a network's time beside the reference's in the same process",
        "measured": f"{found.graphs} graphs in {found.seconds:.0f} s, {len(found.table.curves)} kinds of kernels",
    }
    for family, check in found.checks.items():
        lines[f"error, {family}"] = (
            f"median {100 * check.median_error:.1f}%, 90% within {100 * check.p90_error:.1f}%, "
            f"Kendall's tau {check.kendall_tau:.2f}, on {check.networks} networks that the fit did not see"
        )
    return lines | {f"note {index + 1}": note for index, note in enumerate(found.notes)}


def _print(console: Console, lines: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for key, text in lines.items():
        table.add_row(key, text)
    console.print(table)
