"""One HTML file with all that a measurement found: it opens offline, in light and in dark, on a phone and on a desk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets import figures
from targets.measured import Comparison
from targets.nodes import NodeProfile
from targets.page.charts import TAIL, bars, distribution, roofline, series
from targets.page.svg import text

GENERATOR = '<meta name="generator" content="kdc"/>'  # a page that has it may be overwritten
# Nothing may be fetched, whatever the page's text says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --card: #f5f6f8; --ink: #1c2026; --soft: #5a6270; --line: #d5d9e0;
  --f0: #1f66c1; --f1: #b7521a; --compute: #1f66c1; --memory: #18794e; --overhead: #a33a78; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --card: #1d2127; --ink: #e7eaef; --soft: #a3abb8;
  --line: #39404b; --f0: #6cabf7; --f1: #f0955c; --compute: #6cabf7; --memory: #5cc794; --overhead: #e58bbd; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 4px 0; }
.soft, .small { color: var(--soft); }
.small { font-size: 0.85rem; }
.verdict { font-size: 1.1rem; margin: 8px 0 14px; overflow-wrap: anywhere; }
.cards { display: grid; gap: 14px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
section { background: var(--card); border-radius: 8px; padding: 12px; min-width: 0; }
section.wide { grid-column: 1 / -1; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 6px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; overflow-wrap: anywhere; }
.figures td, .figures th { text-align: right; }
.figures td:first-child, .figures th:first-child { text-align: left; }
.number { text-align: right; white-space: nowrap; }
.bars { table-layout: fixed; }
.bars td { vertical-align: top; }
.bars .rank { width: 2.1em; color: var(--soft); text-align: right; }
.bars .number { width: 5.4em; padding-left: 0; }
.bars .number:last-child { width: 4em; }
.bars .node { overflow-wrap: anywhere; }
.bars .bar { height: 8px; min-width: 1px; margin: 2px 0; border-radius: 2px; background: var(--f0); }
.env td { overflow-wrap: anywhere; }
.env td:first-child { color: var(--soft); width: 38%; }
svg { display: block; width: 100%; height: auto; max-width: 640px; margin: 0 auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg text.by { fill: var(--ink); font-weight: 700; font-size: 11px; }
svg text.in { fill: var(--ground); font-weight: 700; font-size: 11px; pointer-events: none; }
@media (max-width: 520px) { svg text { font-size: 15px; } h1 { font-size: 1.1rem; } }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.mark { stroke-width: 1.2; stroke-dasharray: 4 3; }
.roof { fill: none; stroke: var(--ink); stroke-width: 1.6; stroke-linejoin: round; }
.dot { opacity: 0.35; }
.spot { opacity: 0.85; stroke: var(--card); stroke-width: 1; }
.line.f0, .mark.f0 { stroke: var(--f0); } .dot.f0, .spot.f0 { fill: var(--f0); }
.line.f1, .mark.f1 { stroke: var(--f1); } .dot.f1 { fill: var(--f1); }
.spot.b-compute { fill: var(--compute); } .bars .b-compute { background: var(--compute); }
.spot.b-memory { fill: var(--memory); } .bars .b-memory { background: var(--memory); }
.spot.b-overhead { fill: var(--overhead); } .bars .b-overhead { background: var(--overhead); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0 0 4px; }
.legend span { overflow-wrap: anywhere; min-width: 0; }
.key { display: inline-block; width: 0.75em; height: 0.75em; border-radius: 2px; margin-right: 0.4em; }
.key.f0 { background: var(--f0); } .key.f1 { background: var(--f1); }
.key.b-compute { background: var(--compute); } .key.b-memory { background: var(--memory); }
.key.b-overhead { background: var(--overhead); }
"""


def render(
    comparison: Comparison,
    *,
    target: str,
    nodes: Sequence[NodeProfile] = (),
    remarks: Sequence[str] = (),
) -> str:
    """The page as text; it is well-formed XML too.

    Args: nodes: of the files, where they were profiled. remarks: further sentences about the files.
    """
    files = [one for one in (comparison.candidate, comparison.baseline) if one is not None]
    names = [one.path.name for one in files]
    keys = legend([(f"f{index}", name) for index, name in enumerate(names)])
    title = " against ".join(names)
    cards = [
        card("Figures", table(names, list(figures.rows(comparison))), wide=True),
        card(
            "How long a run takes",
            keys + distribution(comparison.samples_ns),
            f"Dashed: the median. The slowest {1 - TAIL:.0%} may lie outside: the longest run took "
            f"{_longest(comparison):.4g} ms.",
        ),
        card(
            "Over the processes",
            keys + series(comparison.samples_ns),
            "Each dot is the median of one block of runs, the line goes through the processes' medians. A slope means "
            "that the machine grew hot or its load changed.",
        ),
    ]
    for profile in nodes:
        cards += _node_cards(profile)
    said = "".join(f"<p>{text(one)}</p>" for one in (*remarks, *(f"Note: {note}" for note in comparison.notes)))
    hashes = {f"SHA-256 of {one.path.name}": one.sha256 for one in files}
    cards.append(card("Environment", said + environment({**comparison.environment, **hashes}), wide=True))
    return document(title, f"timed on {target}", figures.verdict(comparison), cards)


def is_page(path: Path) -> bool:
    """Whether a file is a page that was written here."""
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def document(title: str, where: str, verdict: str, cards: Sequence[str]) -> str:
    """The whole page of these cards, as text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>'
        f"{GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{text(title)}</h1><p class="soft">{text(where)}</p><p class="verdict">{text(verdict)}</p>'
        f'<div class="cards">{"".join(cards)}</div></main></body></html>\n'
    )


def card(title: str, content: str, below: str = "", *, wide: bool = False) -> str:
    """One box of the page. Args: content: HTML. below: a sentence under it."""
    said = f'<p class="small">{text(below)}</p>' if below else ""
    return f'<section class="{"wide" if wide else "half"}"><h2>{text(title)}</h2>{content}{said}</section>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours. Args: entries: (class of the colour, name)."""
    spans = "".join(f'<span><i class="key {kind}"></i>{text(name)}</span>' for kind, name in entries)
    return f'<div class="legend small">{spans}</div>'


def _longest(comparison: Comparison) -> float:
    return max(ns for file in comparison.samples_ns for process in file for block in process for ns in block) / 1e6


def table(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of figures; a row's first cell is its name, and a row without any other is left out."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><td>{text(name)}</td>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
        if any(cells)
    )
    return f'<table class="figures"><tr><th></th>{head}</tr>{body}</table>'


def _node_cards(profile: NodeProfile) -> list[str]:
    where = ", ".join(f"{count} in {name}" for name, count in profile.providers.items())
    told = (
        f"By onnxruntime's profiler, in {profile.runs} runs of their own, which slows them: shares, not a latency. "
        f"Nodes that ran: {where}."
    )
    fallen = profile.fallback()
    if fallen:
        told += f" {len(fallen)} of them did not run in {profile.asked[0]}."
    cards = [card(f"Where the time goes: {profile.path.name}", bars(profile), told)]
    drawn = roofline(profile)
    if drawn is not None:
        kinds = [("b-" + kind, f"{kind}-bound") for kind in ("compute", "memory", "overhead")]
        without = [node for node in profile.nodes if not node.macs]
        said = (
            "As large as its share of the time; numbers are those of the bars. Nodes without multiply-accumulates "
            f"({np.sum([node.share for node in without]):.1%} of the time) are left out."
        )
        if profile.peaks is None:
            said += " No peaks were given (--peaks), so that no roof is drawn."
        cards.append(card(f"Roofline: {profile.path.name}", (legend(kinds) if profile.peaks else "") + drawn, said))
    return cards


def environment(found: Mapping[str, Any]) -> str:
    """What the figures hold for, as a table."""
    cells = "".join(
        f"<tr><td>{text(str(name).replace('_', ' '))}</td><td>{text('unknown' if value is None else value)}</td></tr>"
        for name, value in found.items()
    )
    return f'<table class="env">{cells}</table>'
