"""Runs the inputs of `tests/cases` as a user does: a copy of the folder, and the program in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).parent / "cases"


def copy_case(name: str, folder: Path) -> Path:
    """The case in a folder of its own, with `plain` and `batch_sizes.py` beside it, which some cases name."""
    for other in {name, "plain"}:
        shutil.copytree(CASES / other, folder / other, dirs_exist_ok=True)
    shutil.copy(CASES / "batch_sizes.py", folder)
    return folder / name


def run_kdc(
    folder: Path, *arguments: object, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`kdc ARGUMENTS` in a folder: its exit code and what it printed, at 80 columns."""
    return run_python(folder, "-m", "kdc.cli.main", *arguments, timeout=timeout, **environment)


def run_python(
    folder: Path, *arguments: object, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in a folder."""
    return run_program(folder, sys.executable, *arguments, timeout=timeout, **environment)


def run_program(
    folder: Path, *command: object, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command in a folder."""
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", **environment},
        timeout=timeout,
        check=False,
    )
