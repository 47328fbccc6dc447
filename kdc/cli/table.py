"""The report as a table that fits 80 columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kdc.driver.report import ModelRow, Report

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
    table.add_row(
        "latency, ms",
        f"{teacher.latency.median_ms:.4f}",
        f"{student.latency.median_ms:.4f}",
        f"{student.latency.low_ms:.4f} – {student.latency.high_ms:.4f}",
    )
    table.add_row(
        "speed-up", "", f"{report.speedup.ratio:.2f}x", f"{report.speedup.low:.2f}x – {report.speedup.high:.2f}x"
    )
    for name, of in _SIZES.items():
        before, after = of(teacher), of(student)
        table.add_row(name, _number(before), _number(after), f"{before / after:.1f}x less" if after else "")
    console.print(table)
    console.print(f"verdict: {report.speedup.verdict}")

    steps = Table(box=None, pad_edge=False, title="\nafter each pass (validation split)", title_justify="left")
    for column in ("", f"{metric.name} %", "drop", "speed-up", "95% interval", "size kB", "s", ""):
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
            "ships" if step.selected else "",
        )
    console.print(steps)
    if report.budget:
        console.print("\nbudget")
        for verdict in report.budget:
            sign = "≥" if verdict.name == "min_speedup" else "≤"
            mark = "met" if verdict.met else "NOT MET"
            console.print(f"  {verdict.name}: {verdict.value:.4g} {sign} {verdict.limit:.4g}  {mark}")
    for note in report.notes:
        console.print(f"note: {note}")
    console.print(f"\n{out}/student.onnx, {out}/report.json; {report.seconds:.0f} s in all")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
