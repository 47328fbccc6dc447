"""A job in a fresh process of its own, with a time-out; for looking at a model apart from timing it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from kdc.core.errors import TargetError

ROOT = Path(__file__).resolve().parent.parent
SHOWN_LINES = 5
REFUSED = 2  # exit code: the result file holds a message for the user


def run_fresh(module: str, job: BaseModel, folder: Path, *, about: str, timeout_s: float) -> str:
    """Run `python -m module JOB RESULT` and give the text it wrote into RESULT.

    Args: folder: where job and result are put. about: what is being done, for messages. timeout_s: after which the
    process is killed.

    Raises: TargetError with what the process said, where it was killed or ended without a result.
    """
    request, result = folder / "job.json", folder / "result.json"
    request.write_text(job.model_dump_json())
    result.unlink(missing_ok=True)
    environment = dict(os.environ)
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT))))
    # -P: a folder `targets` of the user's, where kdc was started, must not stand in for this package
    command = [sys.executable, "-P", "-m", module, str(request), str(result)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            _, said = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise TargetError(
                f"{about}: the process did not end within {timeout_s:.0f} s and was killed",
                do="try a smaller model, or look whether the runtime hangs on it",
            ) from error
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode == REFUSED and result.exists():
        raise TargetError(result.read_text())
    if process.returncode != 0 or not result.exists():
        last = said.decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise TargetError(f"{about}: the process ended with {how}\n" + "\n".join(last))
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
