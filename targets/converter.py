"""Running a runtime's converter as a process of its own: what it prints is kept, and a crash of it is one message."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kdc.core import scratch
from kdc.core.errors import TargetError
from targets.tied import tied

TIMEOUT_SECONDS = 600
SHOWN_LINES = 5


def convert(name: str, command: Sequence[str], folder: Path, model: Path, expected: Sequence[Path]) -> str:
    """Run a converter in a folder.

    Args: name, model: the converter and what it converts, for the message. expected: the files that it must write.

    Returns: what it printed.
    Raises: TargetError with the end of that, where it failed, wrote nothing or did not end.
    """
    try:
        done = subprocess.run(
            tied(command),
            cwd=folder,
            env={**os.environ, **scratch.environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"{model}: {name} did not end within {TIMEOUT_SECONDS} s") from error
    said = done.stdout.decode(errors="replace")
    if done.returncode == 0 and all(path.is_file() for path in expected):
        return said
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    last = "\n".join(said.strip().splitlines()[-SHOWN_LINES:])
    raise TargetError(f"{model}: {name} cannot convert it ({how})\n{last}")
