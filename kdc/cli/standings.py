"""The leaderboard as a table that fits 80 columns, and as it stands in docs/distillation.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdc.driver.standings import REFERENCES, TEST, VALIDATION, Choice, Comparison, Leaderboard, Row

ECE, AGREEMENT = "expected_calibration_error", "agreement"
_MARKS = {"better": "better", "worse": "worse", "no difference shown": "–"}


def show(board: Leaderboard, out: Path) -> None:
    """Print the table on stdout, the best mean first, and what the test split says of the first."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, collapse_padding=True, title=_title(board), title_justify="left")
    for column in ("method", "validation", *(f"vs {name}" for name in ("kd", "labels")), "test", "ECE", "agree"):
        first = column == "method"
        table.add_column(column, justify="left" if first else "right", no_wrap=not first)
    for row in ranked(board):
        table.add_row(*_cells(row))
    console.print(table)
    for line in (*_failures(board), "", *_legend(board), "", *conclusion(board)):
        console.print(line, soft_wrap=False)
    console.print(f"\n{out}/leaderboard.json; {board.seconds / 60:.1f} minutes of training on one thread")


def as_markdown(board: Leaderboard) -> str:
    """The same as text for a page."""
    lines = [
        "| method | validation, 95% | vs kd | vs labels alone | test | ECE | agrees |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(_cells(row, wide=True)) + " |" for row in ranked(board)),
        "",
        *_failures(board),
        "",
        " ".join(_legend(board)),
        "",
        *(line.replace("  ", "- ", 1) if line.startswith("  ") else f"{line}\n" for line in conclusion(board)),
    ]
    return "\n".join(lines).rstrip().replace("\n\n\n", "\n\n")


def ranked(board: Leaderboard) -> list[Row]:
    """The rows that have figures, the best mean on the validation split first."""
    done = [row for row in board.rows if row.failed is None]
    return sorted(done, key=lambda row: -row.figures[VALIDATION].points)


def conclusion(board: Leaderboard) -> Iterator[str]:
    """What was chosen on the validation split, and whether the test split confirms it."""
    if board.choice is None:
        yield "no method could be used with these models"
        return
    yield f"best on validation: {board.choice.name}; on the test split, against"
    for name, one in board.choice.against.items():
        yield f"  {name}: {_difference(one)}, p = {one.p_holm:.2g}: {one.verdict}"
    yield _sentence(board.choice)
    best, teacher = board.row(board.choice.name).figures[VALIDATION].points, board.traits.teacher_points
    if best < teacher / 2:
        yield f"even the best student has {best:.1f} of the teacher's {teacher:.1f} points: train longer, then compare"


def _sentence(choice: Choice) -> str:
    if choice.name == REFERENCES[0]:
        return "plain kd is the best on validation: it stays the default here"
    against = [choice.against[name] for name in REFERENCES if name in choice.against]
    if against and all(one.verdict == "better" for one in against):
        return f"{choice.name} is shown better than plain kd and than labels alone"
    return f"{choice.name} is not shown better than both plain kd and labels alone"


def _title(board: Leaderboard) -> str:
    traits = board.traits
    return (
        f"{board.metric} on {board.name}, mean of {len(board.seeds)} seeds; student {traits.student_macs / 1e6:.3g} of "
        f"{traits.teacher_macs / 1e6:.3g} MMACs;\nteacher {traits.teacher_points:.2f} on validation"
    )


def _cells(row: Row, wide: bool = False) -> list[str]:
    name = row.name if row.factor == 1 else f"{row.name} x{row.factor:g}"
    own, metrics = row.figures, row.metrics[VALIDATION]
    half = (own[VALIDATION].high - own[VALIDATION].low) / 2
    against = [row.against.get(reference) for reference in REFERENCES]
    return [
        f"`{name}`" if wide else name,
        f"{own[VALIDATION].points:.2f} ±{half:.1f}",
        *(
            "" if one is None else f"{one.points:+.2f} {_MARKS[one.verdict]:<6}".rstrip(" " if wide else "")
            for one in against
        ),
        f"{own[TEST].points:.2f}",
        f"{metrics[ECE]:.1f}" if ECE in metrics else "",
        f"{metrics[AGREEMENT]:.1f}" if AGREEMENT in metrics else "",
    ]


def _legend(board: Leaderboard) -> Iterator[str]:
    beside = "labels x 0.1" if board.options.get("beside") == "labels" else "labels x 0.1 and kd x 0.9"
    stand = f"Beside each objective stand {beside}"
    if any(row.role == "strategy" for row in board.rows):
        stand += ", and beside each strategy those of kd"
    yield f"{stand}; kd is that of Hinton et al., labels x 0.1 and kd x 0.9 at T = 4;"
    yield "random teacher and truncated teacher are kd from those."
    yield "Differences, ECE and agreement are on the validation split; –: no difference shown."
    yield "Paired by seed and sample, corrected over all methods (Holm), at 5%."
    if board.factors:
        factors = ", ".join(next(iter(board.factors.values())))
        yield f"Each method's weights were chosen among x {factors} with one seed that is none of these."


def _failures(board: Leaderboard) -> Iterator[str]:
    for row in board.rows:
        if row.failed is not None:
            yield f"{row.name}: not used: {row.failed}" if row.fault is None else f"{row.name}: a fault: {row.failed}"


def _difference(one: Comparison) -> str:
    return f"{one.points:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
