"""`kdc profile`: what a file costs on a target, alone or against another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdc.core.device import Device
    from kdc.core.observe import Emit, Event
    from targets.measured import Comparison, Profile
    from targets.noise import Noise


def profile(
    file: Annotated[Path, typer.Argument(help="an ONNX file, or what the target's runtime loads")],
    *,
    against: Annotated[Path | None, typer.Option(help="a second file, timed in the same rounds")] = None,
    target: Annotated[str, typer.Option(help="a name from `kdc targets`, or a profile's .toml")] = "cpu-ort",
    device: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="where to measure: ssh://user@host[:port] or adb://serial")
    ] = None,
    seconds: Annotated[float, typer.Option(help="the most that timing takes, hot and cold each", min=0.1)] = 20.0,
    cold: Annotated[bool, typer.Option(help="measure runs after the caches were swept, too")] = True,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="the file against a copy of itself: what this machine can tell apart")
    ] = False,
    timeout: Annotated[float, typer.Option(help="seconds after which a measuring process is killed", min=1)] = 300.0,
    samples: Annotated[Path | None, typer.Option(help="real inputs: .npy, or .npz in the inputs' order")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=1,3,224,224", help="fixes an input's free sizes; repeatable")
    ] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="where the time goes, by node, after timing")] = False,
    peaks: Annotated[
        str | None, typer.Option(metavar="FLOPS,BYTES", help="a second: what bounds each node; default: as calibrated")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(metavar="10m", help="instead: run back to back so long, and look for throttling")
    ] = None,
    stream: Annotated[
        str | None, typer.Option(metavar="10ms", help="instead: chunk by chunk; the time that one chunk covers")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="OUT=IN", help="of a stream, carried between chunks; repeatable, or none"),
    ] = None,
    batches: Annotated[str | None, typer.Option(metavar="1,2,4", help="instead: a table of batch sizes")] = None,
    threads: Annotated[str | None, typer.Option(metavar="1,2", help="instead: a table of numbers of threads")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="write the picture: one file, opens offline")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite a --html that kdc did not write")] = False,
    seed: Annotated[int, typer.Option(help="of the blocks' order and the intervals' draws")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON with all samples, nothing else")] = False,
) -> None:
    """Time a file on a target, with intervals; with --against, say which of the two is faster."""
    from kdc.cli.longer import Longer, run_longer
    from kdc.cli.looks import looks, print_looks, with_looks, write_page
    from kdc.core.errors import TargetError
    from kdc.core.placing import check_place
    from targets.device import load_device
    from targets.door.enter import entered
    from targets.door.shapes import parse_shapes
    from targets.measure import Settings, compare
    from targets.noise import noise_of, twin_of
    from targets.page.page import is_page
    from targets.parts import ready
    from targets.predictor.calibration import known_peaks
    from targets.roofline import parse_peaks

    if html is not None:
        check_place(html, "--html", is_page, force=force)
    if self_test and against is not None:
        raise TargetError("--self-test is of one file", do="leave --against out")
    profiled = load_device(target, device)
    inputs = None if samples is None else _read(samples)
    asked = [file] if against is None else [file, against]
    longer = Longer(sustained, batches, threads, stream, tuple(state or ()))
    if device is not None and (nodes or sustained is not None):
        raise TargetError("--nodes and --sustained look at this machine alone", do="leave --device out, or them")
    if longer != Longer() and (self_test or nodes):
        raise TargetError("--self-test and --nodes are of runs one by one", do=f"leave them out, or {longer.flag()}")
    if run_longer(
        longer, asked, shape or [], profiled, inputs, seconds=seconds, timeout=timeout, seed=seed, html=html, json=json
    ):
        return
    roofs = parse_peaks(peaks) if peaks is not None else known_peaks(profiled) if nodes else None
    with entered(asked, parse_shapes(shape or []), real_inputs=inputs is not None) as paths, _bar(seconds) as show:
        candidate, *others = files = [ready(path, profiled) for path in paths]
        settings = Settings(seconds=seconds, cold_seconds=seconds if cold else 0, timeout_seconds=timeout)
        with twin_of(candidate, profiled) if self_test else nullcontext(candidate) as measured:
            beside = candidate if self_test else next(iter(others), None)
            comparison = compare(measured, beside, profiled, inputs, settings, seed=seed, emit=show)
        looked = looks(files, asked, profiled, inputs, nodes=nodes, peaks=roofs, seed=seed)
    noises = noise_of(comparison, settings.interest) if self_test else ()
    comparison = _as_given(comparison, asked, paths, profiled)
    if html is not None:
        write_page(html, comparison, target, looked)
    if json:
        found = {"self_test": [noise.model_dump(mode="json") for noise in noises]} if self_test else {}
        typer.echo(dumps(with_looks(comparison, looked) | found))
    elif self_test:
        _self_test(noises, comparison, target)
    else:
        place = comparison.environment.get("device")
        _table(comparison, target if place is None else f"{target} at {place}")
        print_looks(looked)


@contextmanager
def _bar(seconds: float) -> Iterator[Emit]:
    """A bar on a terminal. It is drawn between processes only, so that drawing it costs the measurement nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    from kdc.core.observe import Progress

    console = Console(stderr=True)
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of at most {task.total:.0f} s"),
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=seconds)

        def show(event: Event) -> None:
            if isinstance(event, Progress):
                bar.update(task, description=event.what, completed=event.done, refresh=True)

        yield show


def _as_given(comparison: Comparison, asked: list[Path], ran: list[Path], device: Device) -> Comparison:
    """With the files that were typed: what ran may be a copy whose sizes are fixed, or what was built from it.

    A copy's hash is nobody's, so hash and size are those of the file given. What was built has its own.
    """
    from kdc.core.spec import DeviceFile
    from targets.parts import identity
    from targets.runtime import runtime_of

    def given(one: Profile, at: int) -> Profile:
        runtime = runtime_of(device)
        if ran[at] == asked[at] or runtime.suffix != ".onnx":
            return one.model_copy(update={"path": asked[at]})
        sha256, size = identity(DeviceFile(asked[at], device.runtime), runtime)
        return one.model_copy(update={"path": asked[at], "sha256": sha256, "size_mb": size / 1e6})

    baseline = None if comparison.baseline is None else given(comparison.baseline, -1)
    return comparison.model_copy(update={"candidate": given(comparison.candidate, 0), "baseline": baseline})


def _read(path: Path) -> list[Any]:
    import zipfile

    import numpy as np

    from kdc.core.errors import DataError

    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return [loaded]
        with loaded:
            return [loaded[name] for name in loaded.files]
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file", do="check the path after --samples") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: holds no arrays that can be read: {error}",
            do="write it with numpy.save, or numpy.savez with one array [n, ...] for each input",
        ) from error


def _table(comparison: Comparison, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from targets.figures import judged, rows, verdict

    columns = [one for one in (comparison.candidate, comparison.baseline) if one is not None]
    console = Console(highlight=False, markup=False)
    emulated = ", emulated" if comparison.candidate.latency.emulated else ""
    table = Table(box=None, pad_edge=False, title=f"on {target}{emulated}", title_justify="left")
    table.add_column("")
    for one in columns:
        table.add_column(one.path.name, justify="right", overflow="fold", max_width=28)
    for row in rows(comparison):
        table.add_row(*row)
    console.print(table)
    console.print(verdict(comparison))
    if comparison.cold_ratio is not None and comparison.baseline is not None:
        sentence = judged(comparison.cold_ratio, comparison.candidate.path.name, comparison.baseline.path.name)
        console.print(f"cold: {sentence}")
    for one in columns:
        if one.placement is not None:
            console.print(
                f"{one.path.name} {one.placement.sentence()}" if len(columns) > 1 else one.placement.sentence()
            )
    for note in comparison.notes:
        console.print(f"note: {note}")


def _self_test(noises: tuple[Noise, ...], comparison: Comparison, target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    title = f"{comparison.candidate.path.name} against a copy of itself, on {target}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("", "time ratio", "95% interval", "spread", "processes", "smallest difference"):
        table.add_column(column, justify="right" if column else "left")
    for noise in noises:
        table.add_row(
            noise.regime,
            f"{noise.ratio.ratio:.4f}",
            f"{noise.ratio.low:.4f} – {noise.ratio.high:.4f}",
            f"{100 * noise.spread:.2f}%",
            str(noise.processes),
            f"{100 * noise.smallest:.1f}%",
        )
    console.print(table)
    for noise in noises:
        if noise.ratio.verdict != "no detectable difference":
            console.print(f"{noise.regime}: the file was told apart from itself: do not trust verdicts made here now")
    console.print("spread: of the ratio, between processes; smallest difference: one that is found 9 times of 10")
    for note in comparison.notes:
        console.print(f"note: {note}")
