"""`kdc verify`: whether a finished run still is what its report says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(run: Annotated[Path, typer.Argument(help="the --out folder of a finished run")]) -> None:
    """Check a finished run: checksums, the student's structure, parity of torch and ONNX, the task's metric."""
    from kdc.driver.check import check

    for line in check(run).lines:
        print(line)
