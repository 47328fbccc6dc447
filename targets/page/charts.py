"""The four pictures: how runs are distributed, how they change over the processes, where the time goes, the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from targets.latency import BlocksNs
from targets.nodes import NodeProfile, NodeTime
from targets.page.svg import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, across, axes, drawing, number, path, text, upward
from targets.roofline import Peaks

POINTS = 300  # of one curve
APART = 2.0
TAIL = 0.99  # of all runs are within the distribution's picture
SHOWN = 20  # nodes with a bar
NUMBERED = 5  # of them, also in the roofline
INSIDE = 6.5  # a dot's radius that holds a number


def distribution(files: Sequence[BlocksNs]) -> str:
    """The share of runs that took at most so long, a curve a file; its median as a dashed line.

    In milliseconds; where one file takes more than `APART` times as long as the other, in percent of its own median, for
    in one scale of time each would be a bare step.
    """
    runs = [np.sort([ns for process in file for block in process for ns in block]) / 1e6 for file in files]
    medians = [float(np.median(one)) for one in runs]
    title = "ms for one run"
    if max(medians) > APART * min(medians):
        runs = [100 * (one / middle - 1) for one, middle in zip(runs, medians, strict=True)]
        medians, title = [0.0] * len(runs), "% over its own median, for one run"
    x = across(min(float(one[0]) for one in runs), max(float(np.quantile(one, TAIL)) for one in runs))
    y = upward(0, 1)
    parts = [axes(x, y, title, "share of runs")]
    for index, (one, middle) in enumerate(zip(runs, medians, strict=True)):
        shares = np.linspace(0, 1, POINTS)
        times = np.quantile(one, shares, method="inverted_cdf")
        inside = [(x.at(t), y.at(s)) for t, s in zip(times, shares, strict=True) if t <= x.high]
        parts.append(f'<path class="line f{index}" d="{path(inside)}"/>')
        place = x.at(middle)
        ends = f'x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
        parts.append(f'<line class="mark f{index}" {ends}/>')
    return drawing("".join(parts), "distribution of the time of a run")


def series(files: Sequence[BlocksNs]) -> str:
    """Every block's median in percent of its file's, in the order of the processes; a line through the processes'."""
    parts, clouds = [], []
    for file in files:
        medians = [[float(np.median(block)) for block in process] for process in file]
        whole = float(np.median([one for process in medians for one in process]))
        clouds.append([[100 * (one / whole - 1) for one in process] for process in medians])
    every = [one for cloud in clouds for process in cloud for one in process]
    low, high = (float(np.quantile(every, share)) for share in (0.01, 0.99))
    reach = max(abs(low), abs(high), 1.0) * 1.1
    count = max(len(cloud) for cloud in clouds)
    x, y = across(0, count), upward(-reach, reach)
    step = max(1, -(-count // 10))
    parts.append(
        axes(x, y, "process, in the order they were started", "% of the median", x_ticks=range(0, count + 1, step))
    )
    for index, cloud in enumerate(clouds):
        line = []
        for at, process in enumerate(cloud):
            # files stand beside each other within a process, so that one does not hide the other
            for round_, one in enumerate(process):
                place = x.at(at + (round_ + 0.5) / len(process))
                parts.append(f'<circle class="dot f{index}" cx="{place:.1f}" cy="{y.at(one):.1f}" r="2"/>')
            line.append((x.at(at + 0.5), y.at(float(np.median(process)))))
        if len(line) > 1:
            parts.append(f'<path class="line f{index}" d="{path(line)}"/>')
    return drawing("".join(parts), "time of a run over the processes")


def dearest(profile: NodeProfile) -> list[NodeTime]:
    """The nodes, the dearest first."""
    return sorted(profile.nodes, key=lambda node: -node.share)


def bars(profile: NodeProfile) -> str:
    """A bar for each of the dearest nodes: a table, so that names of any length find their place."""
    nodes = dearest(profile)
    longest = nodes[0].share if nodes else 1.0
    rows = []
    for rank, node in enumerate(nodes[:SHOWN], 1):
        name = node.module or (node.covers[0] if node.covers else node.name)
        held = f" · by {node.made_by}" if node.made_by else ""
        held += f" · {node.bound}-bound" if node.bound else ""
        kind = f"b-{node.bound}" if node.bound else "f0"
        rows.append(
            f'<tr><td class="rank">{rank}</td><td class="node">{text(name)}'
            f'<span class="small"> {text(node.operator)}{text(held)}</span>'
            f'<div class="bar {kind}" style="width:{100 * node.share / (longest or 1):.1f}%"></div></td>'
            f'<td class="number">{node.time_us:,.0f} µs</td>'
            f'<td class="number">{node.share:.1%}</td></tr>'
        )
    rest = nodes[SHOWN:]
    if rest:
        share = sum(node.share for node in rest)
        rows.append(
            f'<tr><td></td><td class="node">{len(rest)} more nodes</td><td></td>'
            f'<td class="number">{share:.1%}</td></tr>'
        )
    return f'<table class="bars">{"".join(rows)}</table>'


def roofline(profile: NodeProfile) -> str | None:
    """Operations a second over operations a byte, a dot a node, as large as its share; None without such nodes."""
    ranks = {node.name: rank for rank, node in enumerate(dearest(profile), 1)}
    points = [
        (2 * node.macs / node.moved_bytes, 2 * node.macs / (node.time_us * 1e3), node)
        for node in profile.nodes
        if node.macs and node.moved_bytes and node.time_us
    ]
    if not points:
        return None
    peaks = profile.peaks
    intensities, rates = [one[0] for one in points], [one[1] for one in points]
    top = max([*rates, *([peaks.flops_per_s / 1e9] if peaks else [])])
    x = across(min(intensities) / 2, max(intensities) * 2, log=True)
    y = upward(min(rates) / 2, top * 2, log=True)
    parts = [axes(x, y, "operations for each byte moved", "10⁹ operations a second")]
    if peaks is not None:
        parts.append(_roof(peaks, x.low, x.high, y.low, lambda a, b: (x.at(a), y.at(b))))
    numbered: list[tuple[float, float]] = []
    numbers: list[str] = []
    for intensity, rate, node in sorted(points, key=lambda point: -point[2].share):
        a, b = x.at(intensity), y.at(rate)
        told = f"{node.module or node.name}: {node.operator}, {node.time_us:,.0f} µs, {number(round(rate, 3))} · 10⁹/s"
        kind = f"b-{node.bound}" if node.bound else "f0"
        size = 3 + 9 * node.share**0.5
        parts.append(
            f'<circle class="spot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="{size:.1f}"><title>{text(told)}</title></circle>'
        )
        # a number only where it hides no other, and beside a dot that is too small to hold it
        clear = all(abs(a - c) > 14 or abs(b - d) > 14 for c, d in numbered)
        if ranks[node.name] <= NUMBERED and clear:
            numbered.append((a, b))
            kind, at = (
                ("in", a) if size >= INSIDE else ("by", a + (size + 6 if a < WIDTH - 2 * RIGHT - 10 else -size - 6))
            )
            numbers.append(
                f'<text class="{kind}" x="{at:.1f}" y="{b + 4:.1f}" text-anchor="middle">{ranks[node.name]}</text>'
            )
    parts += numbers  # above all dots
    return drawing("".join(parts), "roofline")


def _roof(
    peaks: Peaks, low: float, high: float, least: float, at: Callable[[float, float], tuple[float, float]]
) -> str:
    """The two peaks: what memory allows up to the ridge, what arithmetic allows behind it."""
    memory, flops = peaks.bytes_per_s / 1e9, peaks.flops_per_s / 1e9
    ridge = flops / memory
    start = max(low, least / memory)  # further left the roof is below the picture
    corners = [(start, min(start * memory, flops)), (ridge, flops), (high, flops)]
    line = [at(*corner) for corner in corners if start <= corner[0] <= high]
    return f'<path class="roof" d="{path(line)}"/>'
