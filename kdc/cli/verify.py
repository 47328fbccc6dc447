"""`kdc verify`: whether a finished run still is what its report says; with --bisect, where a runtime's answers differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    run: Annotated[Path, typer.Argument(help="the --out folder of a finished run; with --bisect an ONNX file too")],
    *,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="find the first node whose value in the runtime is not what ONNX defines")
    ] = False,
    target: Annotated[str, typer.Option(help="of --bisect: the target whose runtime is looked at")] = "cpu-ort",
) -> None:
    """Check a finished run: checksums, the student's structure, parity of torch and ONNX, the task's metric."""
    if bisect:
        _bisect(run / "student.onnx" if run.is_dir() else run, target)
        return
    from kdc.driver.check import check

    for line in check(run).lines:
        print(line)


def _bisect(path: Path, target: str) -> None:
    from targets.bisect import bisect
    from targets.device import load_device

    device = load_device(target)
    found = bisect(path, device)
    checked = found.nodes - len(found.unchecked)
    print(f"{path.name} in {device.runtime}: outputs differ from ONNX's reference by {found.error:.2g} of their size")
    if found.first is not None:
        first = found.first
        module = f", of {first.module}" if first.module else ""
        unit = "steps" if first.allowed == 1 else "of its size"
        print(
            f"first node that differs: {first.operator} '{first.node}'{module}: its value {first.value!r} by "
            f"{first.error:.2g} {unit} (allowed {first.allowed:g})"
        )
    else:
        print(
            f"no node differs by itself, of {checked} that were checked; a difference above is of fused nodes or adds up"
        )
    if found.unchecked:
        print(f"not checked: {', '.join(found.unchecked)}")
