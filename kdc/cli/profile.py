"""`kdc profile`: what a file costs on a target, alone or against another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kdc.core.observe import Event
    from targets.measure import Comparison, Profile


def profile(
    file: Annotated[Path, typer.Argument(help="an ONNX file, or what the target's runtime loads")],
    *,
    against: Annotated[Path | None, typer.Option(help="a second file, timed in the same rounds")] = None,
    target: Annotated[str, typer.Option(help="a name from `kdc targets`, or a profile's .toml")] = "cpu-ort",
    seconds: Annotated[float, typer.Option(help="the most that timing takes", min=0.1)] = 20.0,
    samples: Annotated[Path | None, typer.Option(help="real inputs: .npy, or .npz in the inputs' order")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=1,3,224,224", help="fixes an input's free sizes; repeatable")
    ] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="where the time goes, by node, after timing")] = False,
    peaks: Annotated[
        str | None, typer.Option(metavar="FLOPS,BYTES", help="a second, of this machine: what bounds each node")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(metavar="10m", help="instead: run back to back so long, and look for throttling")
    ] = None,
    batches: Annotated[str | None, typer.Option(metavar="1,2,4", help="instead: a table of batch sizes")] = None,
    threads: Annotated[str | None, typer.Option(metavar="1,2", help="instead: a table of numbers of threads")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="write the picture: one file, opens offline")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the blocks' order and the intervals' draws")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print JSON with all samples, nothing else")] = False,
) -> None:
    """Time a file on a target, with intervals; with --against, say which of the two is faster."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    from kdc.cli.longer import Longer, run_longer
    from kdc.cli.looks import looks, print_looks, with_looks, write_page
    from kdc.core.observe import Progress
    from kdc.core.spec import DeviceFile
    from targets.device import load_device
    from targets.door.enter import entered
    from targets.door.shapes import parse_shapes
    from targets.measure import Settings, compare
    from targets.roofline import parse_peaks

    device = load_device(target)
    inputs = None if samples is None else _read(samples)
    asked = [file] if against is None else [file, against]
    longer = Longer(sustained, batches, threads)
    if run_longer(longer, asked, shape or [], device, inputs, seconds=seconds, seed=seed, json=json):
        return
    roofs = None if peaks is None else parse_peaks(peaks)
    # The bar is drawn between processes only, so that drawing it costs the measurement nothing.
    console = Console(stderr=True)
    with (
        entered(asked, parse_shapes(shape or []), real_inputs=inputs is not None) as paths,
        Bar(
            TextColumn("measuring"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of at most {task.total:.0f} s"),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task("", total=seconds)

        def show(event: Event) -> None:
            if isinstance(event, Progress):
                bar.update(task, completed=event.done, refresh=True)

        comparison = compare(
            DeviceFile(paths[0], device.runtime),
            DeviceFile(paths[1], device.runtime) if against is not None else None,
            device,
            inputs,
            Settings(seconds=seconds),
            seed=seed,
            emit=show,
        )
        looked = looks(paths, asked, device, inputs, nodes=nodes, peaks=roofs, seed=seed)
    comparison = _as_named(comparison, asked)
    if html is not None:
        write_page(html, comparison, _verdict(comparison), target, looked)
    if json:
        typer.echo(with_looks(comparison, looked))
    else:
        _table(comparison, target)
        print_looks(looked)


def _as_named(comparison: Comparison, asked: list[Path]) -> Comparison:
    """With the paths that were typed: what ran may be a copy whose sizes are fixed."""
    candidate, baseline = comparison.candidate.model_copy(update={"path": asked[0]}), comparison.baseline
    if baseline is not None:
        baseline = baseline.model_copy(update={"path": asked[1]})
    return comparison.model_copy(update={"candidate": candidate, "baseline": baseline})


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

    columns = [one for one in (comparison.candidate, comparison.baseline) if one is not None]
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, title=f"on {target}", title_justify="left")
    table.add_column("")
    for one in columns:
        table.add_column(one.path.name, justify="right", overflow="fold", max_width=28)
    for name, *cells in zip(_NAMES, *(_cells(one) for one in columns), strict=True):
        table.add_row(str(name), *map(str, cells))
        if name == _INTERVAL and any(one.latency.mean_ms is not None for one in columns):
            for mean, *means in zip(("mean over inputs, ms", _INTERVAL), *map(_means, columns), strict=True):
                table.add_row(str(mean), *map(str, means))
    console.print(table)
    console.print(_verdict(comparison))
    for note in comparison.notes:
        console.print(f"note: {note}")


_INTERVAL = "  95% interval"
_NAMES = (
    "median, ms",
    _INTERVAL,
    "p90, ms",
    "p99, ms",
    "load, ms",
    "first run, ms",
    "peak memory, MB",
    "size, kB",
    "parameters",
    "thousand MACs",
    "runs, processes",
)


def _cells(one: Profile) -> tuple[str, ...]:
    latency = one.latency
    return (
        f"{latency.median_ms:.4g}",
        f"{latency.low_ms:.4g} – {latency.high_ms:.4g}",
        "too few runs" if latency.p90_ms is None else f"{latency.p90_ms:.4g}",
        "too few runs" if latency.p99_ms is None else f"{latency.p99_ms:.4g}",
        f"{latency.load_ms:.3g}",
        f"{latency.first_ms:.3g}",
        f"{one.peak_memory_mb:.1f}",
        f"{one.size_mb * 1e3:.1f}",
        f"{one.parameters:,}",
        f"{one.macs / 1e3:,.1f}",
        f"{latency.n:,}, {latency.processes}",
    )


def _means(one: Profile) -> tuple[str, str]:
    """The mean and its interval, where the file's work depends on its input."""
    latency = one.latency
    if latency.mean_ms is None:
        return "as the median", ""
    return f"{latency.mean_ms:.4g}", f"{latency.mean_low_ms:.4g} – {latency.mean_high_ms:.4g}"


def _verdict(comparison: Comparison) -> str:
    """The result in one sentence, and how far it can be trusted."""
    stopped = "" if comparison.reached == "precision" else "; time was over before 1% precision: --seconds gives more"
    ratio, baseline = comparison.ratio, comparison.baseline
    if ratio is None or baseline is None:
        latency = comparison.candidate.latency
        if latency.mean_ms is not None:
            return f"{comparison.candidate.path.name}: {latency.mean_ms:.4g} ms, the mean over its inputs{stopped}"
        return f"{comparison.candidate.path.name}: {latency.median_ms:.4g} ms{stopped}"
    candidate, other = comparison.candidate.path.name, baseline.path.name
    if ratio.verdict == "no detectable difference":
        found = f"no detectable difference between {candidate} and {other}"
        return f"{found} (times {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]){stopped}"
    times, low, high = ratio.ratio, ratio.low, ratio.high
    if ratio.verdict == "slower":
        times, low, high = 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low
    return f"{candidate} is {ratio.verdict} than {other}, {times:.3g} times [{low:.3g}, {high:.3g}]{stopped}"
