"""Draws docs/facts.svg from the passes' own contracts: which facts hold along a plan, who needs them, who ends them.

python docs/draw_facts.py
"""

from html import escape
from pathlib import Path

from kdc.core.contract import Fact
from kdc.driver.plan import TEACHER_FACTS, make
from passes import Prune, Quantize, Route, Search
from targets.device import load_device

PICTURE = Path(__file__).with_name("facts.svg")
LEFT, TOP, COLUMN, ROW, HEAD = 96, 74, 96, 34, 30
INK, SOFT, LINE, END = "#1f2933", "#7b8794", "#2f6f9f", "#b5442e"


def draw() -> str:
    """The picture of search, prune, quantize, route and the three lowering passes, as SVG."""
    device = load_device("cpu-ort")
    plan = make([Search(), Prune(), Quantize(), Route()], device)
    steps = [*plan.compress, *plan.lowering]
    width, height = LEFT + COLUMN * (len(steps) + 1) + 16, TOP + ROW * len(Fact) + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="15" font-weight="600">Facts along a plan</text>',
    ]
    lane = {fact: TOP + ROW * place + ROW // 2 for place, fact in enumerate(Fact)}
    for fact, y in lane.items():
        parts.append(f'<text x="16" y="{y + 4}">{escape(fact)}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{width - 16}" y1="{y}" y2="{y}" stroke="#e4e7eb"/>')
    before = TEACHER_FACTS
    _span(parts, lane, before, LEFT, LEFT + COLUMN)
    parts.append(_box(LEFT + 4, "teacher", SOFT))
    for place, step in enumerate(steps, start=1):
        x = LEFT + COLUMN * place
        contract = step.settings.contract(device)
        middle = x + COLUMN // 2
        parts.append(_box(x + 4, step.label, INK))
        for fact in Fact:
            y = lane[fact]
            if fact in before:
                end = middle if fact not in step.facts else x + COLUMN
                parts.append(f'<line x1="{x}" x2="{end}" y1="{y}" y2="{y}" stroke="{LINE}" stroke-width="4"/>')
            elif fact in step.facts:
                parts.append(
                    f'<line x1="{middle}" x2="{x + COLUMN}" y1="{y}" y2="{y}" stroke="{LINE}" stroke-width="4"/>'
                )
                parts.append(f'<circle cx="{middle}" cy="{y}" r="6" fill="#ffffff" stroke="{LINE}" stroke-width="3"/>')
            if fact in contract.requires:
                parts.append(f'<circle cx="{middle}" cy="{y}" r="5" fill="{INK}"/>')
            if fact in contract.destroys and fact in before:
                parts.append(
                    f'<path d="M{middle + 8} {y - 7}v14" stroke="{END}" stroke-width="4"/>'
                    f'<line x1="{middle}" x2="{middle + 8}" y1="{y}" y2="{y}" stroke="{LINE}" stroke-width="4"/>'
                    + (f'<circle cx="{middle}" cy="{y}" r="5" fill="{INK}"/>' if fact in contract.requires else "")
                )
        before = step.facts
    y = height - 26
    legend = [
        (f'<line x1="0" x2="24" y1="0" y2="0" stroke="{LINE}" stroke-width="4"/>', "holds"),
        (f'<circle cx="12" cy="0" r="5" fill="{INK}"/>', "the pass needs it"),
        (f'<circle cx="12" cy="0" r="6" fill="#ffffff" stroke="{LINE}" stroke-width="3"/>', "the pass provides it"),
        (f'<path d="M12 -7v14" stroke="{END}" stroke-width="4"/>', "the pass ends it"),
    ]
    for place, (mark, words) in enumerate(legend):
        x = LEFT + 176 * place
        parts.append(f'<g transform="translate({x} {y})">{mark}<text x="32" y="4">{words}</text></g>')
    return "\n".join([*parts, "</svg>", ""])


def _span(parts: list[str], lane: dict[Fact, int], facts: frozenset[Fact], start: int, end: int) -> None:
    for fact in Fact:
        if fact in facts:
            y = lane[fact]
            parts.append(f'<line x1="{start}" x2="{end}" y1="{y}" y2="{y}" stroke="{LINE}" stroke-width="4"/>')


def _box(x: int, label: str, color: str) -> str:
    wide = COLUMN - 8
    return (
        f'<rect x="{x}" y="{TOP - HEAD - 4}" width="{wide}" height="{HEAD - 4}" rx="5" fill="none" stroke="{color}"/>'
        f'<text x="{x + wide // 2}" y="{TOP - HEAD + 13}" text-anchor="middle" fill="{color}">{escape(label)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
