"""The report as a table that fits 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdc.driver.report import Estimate, ModelRow, Report, Routing, StepRow

_SIZES: dict[str, Callable[[ModelRow], float]] = {
    "size, kB": lambda row: row.size_mb * 1e3,
    "parameters": lambda row: row.parameters,
    "thousand MACs": lambda row: row.macs / 1e3,
    "peak memory, MB": lambda row: row.peak_memory_mb,
}


def show(report: Report, out: Path) -> None:
    """Print teacher, student and one row a pass on stdout."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, title=f"on {report.target}, batch 1", title_justify="left")
    for column in ("", "teacher", "student", "95% interval"):
        table.add_column(column, justify="left" if not column else "right")
    teacher, student = report.teacher, report.student
    metric = student.metric
    table.add_row(
        f"{metric.name}, test %",
        f"{teacher.metric.points:.2f}",
        f"{metric.points:.2f}",
        f"{metric.low:.2f} – {metric.high:.2f}",
    )
    p_value = "" if report.drop.p_value is None else f", p = {report.drop.p_value:.2g}"
    table.add_row(
        "drop, points", "", f"{report.drop.points:.2f}", f"{report.drop.low:.2f} – {report.drop.high:.2f}{p_value}"
    )
    for row in _quality(report):
        table.add_row(*row)
    if report.robustness is not None:
        attacked, interval = report.robustness, report.robustness.student
        points = (f"{one.points:.2f}" for one in (attacked.teacher, attacked.student))
        table.add_row(f"{interval.name}, %", *points, f"{interval.low:.2f} – {interval.high:.2f}")
    of = student.latency
    value, low, high = of.figure()
    table.add_row(
        ("latency, ms" if of.mean_ms is None else "mean latency, ms") + (", emulated" if of.emulated else ""),
        f"{teacher.latency.median_ms:.4f}",
        f"{value:.4f}",
        f"{low:.4f} – {high:.4f}",
    )
    if teacher.cold is not None and student.cold is not None:
        value, low, high = student.cold.figure()
        table.add_row("  cold", f"{teacher.cold.figure()[0]:.4f}", f"{value:.4f}", f"{low:.4f} – {high:.4f}")
    emulated = ", emulated" if of.emulated else ""
    table.add_row(
        f"speed-up{emulated}",
        "",
        f"{report.speedup.ratio:.2f}x",
        f"{report.speedup.low:.2f}x – {report.speedup.high:.2f}x",
    )
    if report.cold_speedup is not None:
        times = report.cold_speedup
        table.add_row("  cold", "", f"{times.ratio:.2f}x", f"{times.low:.2f}x – {times.high:.2f}x")
    for name, size in _SIZES.items():
        before, after = size(teacher), size(student)
        table.add_row(name, _number(before), _number(after), f"{before / after:.1f}x less" if after else "")
    console.print(table)
    console.print(f"verdict: {report.speedup.verdict}{emulated}")

    steps = Table(box=None, pad_edge=False, title="\nafter each pass (validation split)", title_justify="left")
    for column in ("", f"{metric.name} %", "drop", f"speed-up{emulated}", "95% interval", "size kB", "s", ""):
        steps.add_column(column, justify="left" if not column else "right")
    for step in report.steps:
        steps.add_row(
            step.name,
            f"{step.student.metric.points:.2f}",
            f"{step.drop.points:.2f}",
            f"{step.speedup.ratio:.2f}x",
            f"{step.speedup.low:.2f}x – {step.speedup.high:.2f}x",
            f"{step.student.size_mb * 1e3:.0f}",
            f"{step.seconds:.0f}",
            ("ships" if report.met else "nearest") if step.selected else "",
        )
    console.print(steps)
    for step in report.steps:
        _show_candidates(console, step, emulated)
        if step.routing is not None:
            _show_routing(console, f"{step.name}{emulated}", metric.name, step.routing)
    if report.routing is not None:
        _show_routing(console, f"what ships{emulated}", metric.name, report.routing)
    _show_budget(console, report)
    for line in _said(report):
        console.print(line)
    console.print(f"\n{out}/{report.ships}, {out}/report.json; {report.seconds:.0f} s in all")


def _show_budget(console: Console, report: Report) -> None:
    """Each limit, the figure that is held to it, and which figure that is."""
    console.print("\nbudget: " + ("met" if report.met else "NOT MET; this student is the nearest"))
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column()
    for one in report.budget:
        sign = {"at most": "≤", "at least": "≥", "above": ">"}[one.bound]
        mark = "met" if one.met else "NOT MET"
        told = ["emulated"] if one.emulated else [one.end]
        if one.test is not None:
            denied = ", beyond the limit" if one.contradicted else ""
            told.append(f"test {one.test[0]:.4g} – {one.test[1]:.4g}{denied}")
        table.add_row(f"  {one.name}", f"{one.value:.4g} {sign} {one.limit:.4g}", mark, "; ".join(told))
    console.print(table)


def _quality(report: Report) -> Iterator[tuple[str, str, str]]:
    """Beside accuracy: how far confidence is right, and how many answers are others than before."""
    teacher, student = report.teacher.metrics, report.student.metrics
    base = "the teacher" if report.previous is None else "the last release"
    names = {
        "expected_calibration_error": "calibration error, %",
        "temperature": "best temperature",
        "worst_class": "worst class, %",
        "agreement": "agrees with the teacher, %",
        "churn": f"churn against {base}, %",
        "new_mistakes": "  right before, wrong now, %",
    }
    for key, name in names.items():
        if key in student:
            before = f"{teacher[key]:.2f}" if key in teacher else ""
            yield name, before, f"{student[key]:.2f}"


def _said(report: Report) -> Iterator[str]:
    """What the attack was; which nodes ran where, on a target of several providers; then the notes."""
    if report.robustness is not None:
        yield report.robustness.sentence()
    for name, row in (("teacher", report.teacher), ("student", report.student)):
        if row.placement is not None:
            yield f"{name} {row.placement.sentence()}"
    yield from (f"note: {note}" for note in report.notes)


def _show_candidates(console: Console, step: StepRow, emulated: str) -> None:
    """The front of a search: candidates that no other beats in cost and points."""
    rows = [row for row in step.findings.get("candidates", []) if row["front"]]
    if not rows:
        return
    tried = len(step.findings["candidates"])
    title = f"\n{step.name}: the front of {tried} candidates (points after short distillations; all in report.json)"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("points", f"ms{emulated}", "MMACs", "structure", ""):
        table.add_column(column, justify="left" if column in ("structure", "") else "right")
    for row in sorted(rows, key=lambda row: -row["macs"]):
        table.add_row(
            f"{row['points'][-1]:.2f}",
            "" if row["latency_ms"] is None else f"{row['latency_ms']:.4f}",
            f"{row['macs'] / 1e6:.2f}",
            row["structure"],
            "chosen" if row["chosen"] else "",
        )
    console.print(table)


def _show_routing(console: Console, name: str, metric: str, routing: Routing) -> None:
    """Who leaves where, and what it costs, beside the same student without exits."""
    title = f"\n{name}: early exits on the {routing.split} split, input by input"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("exit behind", "inputs", f"{metric} %", "mean ms"):
        table.add_column(column, justify="left" if column == "exit behind" else "right")
    for exit_ in routing.exits:
        points = "" if exit_.points is None else f"{exit_.points:.2f}"
        table.add_row(
            exit_.after, f"{exit_.share:.1%}", points, "" if exit_.mean_ms is None else f"{exit_.mean_ms:.4f}"
        )
    console.print(table)
    for label, spread in (("with exits", routing.cascade), ("without", routing.plain)):
        tail = "" if spread.p95_ms is None else f", p95 {spread.p95_ms:.4f}"
        console.print(
            f"  {label}: mean {spread.mean_ms:.4f} ms, median {spread.median_ms:.4f}{tail}, worst {spread.worst_ms:.4f}"
        )
    console.print(f"  mean {_estimate(routing.speedup)} faster; {routing.drop.points:+.2f} points lost "
                  f"[{routing.drop.low:.2f}, {routing.drop.high:.2f}]")  # fmt: skip
    if routing.last_exit is not None:
        console.print(f"  an input that takes the last exit costs {_estimate(routing.last_exit)} of one without exits")


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.ratio:.2f}x [{estimate.low:.2f}, {estimate.high:.2f}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
