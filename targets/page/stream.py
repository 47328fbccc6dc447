"""The page of a stream: how long chunks take at its pace and back to back, in one HTML file that opens offline."""

from __future__ import annotations

from targets.latency import BlocksNs
from targets.page.charts import TAIL, distribution, series
from targets.page.page import card, document, environment, legend, table
from targets.page.svg import text
from targets.stream import ROWS, Streamed, cells, sentence

KINDS = ("at the stream's pace", "back to back")


def render_stream(found: Streamed, *, target: str) -> str:
    """The page as text; it is well-formed XML too."""
    samples = (_blocks(found.paced_ns), _blocks(found.back_to_back_ns))
    keys = legend([(f"f{index}", kind) for index, kind in enumerate(KINDS)])
    carried = ", ".join(f"{output} to {taken}" for output, taken in found.states)
    said = "".join(
        f"<p>{text(one)}</p>"
        for one in (
            f"States carried from one chunk to the next: {carried or 'none'}.",
            f"Late: {found.late:,} of {found.paced.n:,} chunks; the longest was done {found.answer_worst_ms:.4g} ms after "
            "it was due.",
            *(f"Note: {note}" for note in found.notes),
        )
    )
    rows = list(zip(ROWS, cells(found.paced), cells(found.back_to_back), strict=True))
    cards = [
        card("Figures", table(KINDS, rows), wide=True),
        card(
            "How long a chunk takes",
            keys + distribution(samples),
            f"Dashed: the median. The slowest {1 - TAIL:.0%} may lie outside. A chunk covers {found.chunk_ms:g} ms.",
        ),
        card("Over the processes", keys + series(samples), "Each dot is a process's median."),
        card("Environment", said + environment(found.environment), wide=True),
    ]
    title = f"{found.path.name}, a chunk of {found.chunk_ms:g} ms at a time"
    return document(title, f"timed on {target}", sentence(found), cards)


def _blocks(processes: tuple[tuple[int, ...], ...]) -> BlocksNs:
    return tuple((chunks,) for chunks in processes)
