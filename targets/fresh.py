"""A job in a fresh process: started, waited for, and killed when it takes too long or nobody waits any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdc.core import scratch
from kdc.core.errors import TargetError
from targets.job import Done, Job

ROOT = Path(__file__).resolve().parent.parent
SHOWN_LINES = 5
Started = Callable[[subprocess.Popen[bytes]], None]


def run_fresh(
    job: Job,
    folder: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    started: Started = lambda process: None,
) -> Done:
    """Do a job in a process that is started for it.

    Args: folder: where the job and its result are written down. command: what runs `targets.worker`; the paths of the job
    and of the result are appended. started: is told of the process, for one who may have to end it.

    Raises: TargetError with what the process said, where it ended without a result or with an error, or took too long.
    """
    request, result = folder / "job.json", folder / "result.json"
    request.write_text(job.as_json())
    result.unlink(missing_ok=True)
    about = "the process that measured " + ", ".join(str(file.path) for file in job.files)
    code, said = run_process([*command, str(request), str(result)], environment, job.limit_seconds, about, started)
    if code != 0 or not result.exists():
        raise died(about, code, said)
    done = Done.from_json(result.read_text())
    if done.error is not None:
        raise TargetError(done.error)
    return done


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    limit_seconds: float,
    about: str,
    started: Started = lambda process: None,
) -> tuple[int, str]:
    """Run a command to its end: its exit code, and what it said on stderr.

    Args: about: what it is, for the message. started: is told of the process.

    Raises: TargetError where it took longer than its limit and was killed.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(environment)
    )
    started(process)
    with process:
        try:
            _, said = process.communicate(None, limit_seconds)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise TargetError(
                f"{about} was not done after {limit_seconds:.0f} s, and was killed",
                do="the runtime may hang in it: profile each file alone; if it is only slow, --timeout SECONDS gives more",
            ) from error
        except BaseException:  # Ctrl-C too
            process.kill()
            raise
    return process.returncode, said.decode(errors="replace")


def died(about: str, code: int, said: str) -> TargetError:
    """The error of a process that ended without a result, with the last of what it said."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return TargetError(
        "\n".join([f"{about} ended with {how}", *said.strip().splitlines()[-SHOWN_LINES:]]),
        do="the system may have killed it for want of memory: free some"
        if code == -signal.SIGKILL
        else "the runtime may be at fault: profile each file alone, or try another version of the runtime",
    )


def own_environment() -> dict[str, str]:
    """For a process that this one ends with: where `targets` lies, and temporary files in this process's own folder."""
    environment = {**os.environ, **scratch.environment()}
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT))))
    return environment
