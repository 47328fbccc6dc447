"""Looking at a model in a process of its own, apart from timing it: a module that reads a job and writes a result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from kdc.core.errors import TargetError
from targets.fresh import died, own_environment, run_process
from targets.tied import tied

REFUSED = 2  # exit code: the result file holds a message for the user


def run_apart(module: str, job: BaseModel, folder: Path, *, about: str, limit_seconds: float) -> str:
    """Run `python -m module JOB RESULT` and give the text it wrote into RESULT.

    Args: folder: where job and result are put. about: what is being done, for messages. limit_seconds: after which the
    process is killed.

    Raises: TargetError with what the process said, where it was killed or ended without a result.
    """
    request, result = folder / "job.json", folder / "result.json"
    request.write_text(job.model_dump_json())
    result.unlink(missing_ok=True)
    # -P: a folder `targets` of the user's, where kdc was started, must not stand in for this package
    command = [sys.executable, "-P", "-m", module, str(request), str(result)]
    code, said = run_process(tied(command), own_environment(), limit_seconds, about)
    if code == REFUSED and result.exists():
        raise TargetError(result.read_text())
    if code != 0 or not result.exists():
        raise died(about, code, said)
    return result.read_text()


def serve(work: Callable[[str], str], argv: list[str]) -> None:
    """The other side: do `work(job text) -> result text` and end; a TargetError becomes the parent's."""
    request, result = map(Path, argv)
    code = 0
    try:
        text = work(request.read_text())
    except TargetError as error:
        text, code = str(error), REFUSED
    result.write_text(text)
    # The runtime's own threads are not waited for: all that matters is written.
    os._exit(code)
