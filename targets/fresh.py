"""A job in a fresh process: started, waited for, and killed when it takes too long or nobody waits any more."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdc.core.errors import TargetError
from targets.job import Done, Job

SHOWN_LINES = 5


def run_fresh(
    job: Job,
    folder: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    started: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
) -> Done:
    """Do a job in a process that is started for it.

    Args: folder: where the job and its result are written down. command: what runs `targets.worker`; the paths of the job
    and of the result are appended. started: is told of the process, for one who may have to end it.

    Raises: TargetError with what the process said, where it ended without a result or with an error, or took too long.
    """
    request, result = folder / "job.json", folder / "result.json"
    request.write_text(job.as_json())
    result.unlink(missing_ok=True)
    files = ", ".join(str(file.path) for file in job.files)
    process = subprocess.Popen(
        [*command, str(request), str(result)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=dict(environment),
    )
    started(process)
    with process:
        try:
            _, said = process.communicate(None, job.limit_seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise TargetError(
                f"the process that measured {files} was not done after {job.limit_seconds:.0f} s, and was killed",
                do="the runtime may hang in it: profile each file alone; if it is only slow, --timeout SECONDS gives more",
            ) from error
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    if process.returncode != 0 or not result.exists():
        last = said.decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise TargetError(
            "\n".join([f"the process that measured {files} ended with {how}", *last]),
            do="the system may have killed it for want of memory: free some"
            if process.returncode == -signal.SIGKILL
            else "the runtime may be at fault: profile each file alone, or try another version of the runtime",
        )
    done = Done.from_json(result.read_text())
    if done.error is not None:
        raise TargetError(done.error)
    return done
