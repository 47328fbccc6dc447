"""Run a program so that it ends with the process that started it: `python tied.py PARENT PROGRAM ARGUMENTS...`.

Linux kills a process whose parent is gone where it asked for that, and still does after the process has become another
program. So this script asks, and becomes the program. It imports nothing of kdc's, to be quick.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Let the system kill this process when its parent is gone, however that came to its end (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    # Not on every Linux: where the call is refused, the process ends with its job, a little later.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def tied(command: Sequence[str]) -> list[str]:
    """The command that runs another one and ends with this process; the command itself where that is not Linux."""
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main(parent: str, *command: str) -> None:
    """Become the program."""
    end_with_parent()
    if os.getppid() != int(parent):  # it was gone before the system could be told
        sys.exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(*sys.argv[1:])
