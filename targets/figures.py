"""The figures of a measurement as they are read, and its verdict as a sentence: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from targets.measured import Comparison, Profile
from targets.ratio import Ratio

INTERVAL = "  95% interval"


def rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """A name, then one cell for each file; figures that none of the files has are left out."""
    files = [one for one in (comparison.candidate, comparison.baseline) if one is not None]
    for name, *cells in zip(_NAMES, *map(_cells, files), strict=True):
        if any(cells):
            yield name, *(cell or "" for cell in cells)


def verdict(comparison: Comparison) -> str:
    """The result in one sentence, and how far it can be trusted."""
    stopped = "" if comparison.reached == "precision" else "; time was over before 1% precision: --seconds gives more"
    if comparison.candidate.latency.emulated:
        stopped += "; emulated: this is no time of the device's"
    ratio, baseline, name = comparison.ratio, comparison.baseline, comparison.candidate.path.name
    if ratio is not None and baseline is not None:
        return judged(ratio, name, baseline.path.name) + stopped
    latency = comparison.candidate.latency
    if latency.mean_ms is not None:
        return f"{name}: {latency.mean_ms:.4g} ms, the mean over its inputs{stopped}"
    return f"{name}: {latency.median_ms:.4g} ms{stopped}"


def judged(ratio: Ratio, candidate: str, other: str) -> str:
    """What a ratio of two files says, as the number above one and its interval."""
    if ratio.verdict == "no detectable difference":
        found = f"no detectable difference between {candidate} and {other}"
        return f"{found} (times {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}])"
    times, low, high = ratio.ratio, ratio.low, ratio.high
    if ratio.verdict == "slower":
        times, low, high = 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low
    return f"{candidate} is {ratio.verdict} than {other}, {times:.3g} times [{low:.3g}, {high:.3g}]"


_NAMES = (
    "median, ms",
    INTERVAL,
    "mean over inputs, ms",
    INTERVAL,
    "p90, ms",
    "p99, ms",
    "p99.9, ms",
    "cold median, ms",
    INTERVAL,
    "load, ms",
    "first run, ms",
    "peak memory, MB",
    "mapped from files, MB",
    "size, kB",
    "parameters",
    "thousand MACs",
    "runs, processes",
)


def _cells(one: Profile) -> Iterable[str | None]:
    """In the order of the names; None where the file has no such figure."""
    latency = one.latency
    yield f"{latency.median_ms:.4g}"
    yield f"{latency.low_ms:.4g} – {latency.high_ms:.4g}"
    if latency.mean_ms is None:  # no branches: it is the same for every input
        yield from (None, None)
    else:
        yield from (f"{latency.mean_ms:.4g}", f"{latency.mean_low_ms:.4g} – {latency.mean_high_ms:.4g}")
    for percentile in (latency.p90_ms, latency.p99_ms, latency.p999_ms):
        yield "too few runs" if percentile is None else f"{percentile:.4g}"
    if one.cold is None:
        yield from (None, None)
    else:
        value, low, high = one.cold.figure()
        yield f"{value:.4g}" + (" (mean)" if one.cold.mean_ms is not None else "")
        yield f"{low:.4g} – {high:.4g}"
    yield f"{latency.load_ms:.3g}"
    yield f"{latency.first_ms:.3g}"
    yield f"{one.peak_memory_mb:.1f}"
    yield f"{one.mapped_mb:.1f}" if one.mapped_mb else None
    yield f"{one.size_mb * 1e3:.1f}"
    yield "unknown" if one.parameters is None else f"{one.parameters:,}"
    yield "unknown" if one.macs is None else f"{one.macs / 1e3:,.1f}"
    yield f"{latency.n:,}, {latency.processes}"
