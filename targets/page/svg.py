"""Scales, axes and text for drawings: what every chart is made of. Nothing here knows what is drawn."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(value: object) -> str:
    """Any text as it may stand in HTML and in an attribute; characters that XML forbids become U+FFFD."""
    return html.escape(_NOT_XML.sub("\ufffd", str(value)), quote=True)


class Scale(NamedTuple):
    """From values in [low, high] to places in [start, end], by logarithm where `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; those beyond the ends are put at them."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def across(low: float, high: float, *, log: bool = False) -> Scale:
    """The horizontal scale of a chart."""
    return Scale(*_apart(low, high, log), LEFT, WIDTH - RIGHT, log)


def upward(low: float, high: float, *, log: bool = False) -> Scale:
    """The vertical scale of a chart."""
    return Scale(*_apart(low, high, log), HEIGHT - BOTTOM, TOP, log)


def _apart(low: float, high: float, log: bool) -> tuple[float, float]:
    """Two ends that are not the same."""
    if high > low:
        return low, high
    return (low / 2, low * 2) if log and low > 0 else (low - 0.5, low + 0.5)


def ticks(scale: Scale, count: int = 5) -> list[float]:
    """Round values within a scale: steps of 1, 2 or 5 times a power of ten; of a logarithmic one, powers of ten."""
    if scale.log:
        first, last = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
        apart = max(1, math.ceil((last - first + 1) / (count + 1)))
        return [10.0**power for power in range(first, last + 1, apart)]
    rough = (scale.high - scale.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * 0.999)
    begin = math.ceil(scale.low / step - 1e-9)
    return [index * step for index in range(begin, math.floor(scale.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label: short, without an exponent where that is short enough."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:.6g}"
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def axes(x: Scale, y: Scale, x_title: str, y_title: str, *, x_ticks: Sequence[float] | None = None) -> str:
    """Lines at round values with their labels, and what the two directions mean."""
    parts = []
    for value in ticks(y):
        place = y.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in ticks(x) if x_ticks is None else x_ticks:
        place = x.at(value)
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        # a label at an end is turned inward, so that it is not cut off
        anchor = "end" if place > WIDTH - RIGHT - 14 else "middle"
        parts.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{text(x_title)}</text>')
    up = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {up})" text-anchor="middle"'
    parts.append(f'<text class="name" x="12" y="{up}" {turned}>{text(y_title)}</text>')
    return "".join(parts)


def drawing(content: str, label: str) -> str:
    """An SVG that is as wide as its place; `label` tells it to who cannot see it."""
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}">{content}</svg>'


def path(points: Sequence[tuple[float, float]]) -> str:
    """The points as a line."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
