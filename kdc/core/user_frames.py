"""Which line of the user's own code something happened in, and what becomes of `sys.exit` there."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from kdc.core.errors import UserError

_OWN = tuple(str(Path(__file__).parents[2] / package) + "/" for package in ("kdc", "passes", "targets"))
_STANDARD = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")})
_INSTALLED = ("/site-packages/", "/dist-packages/")


def is_own(file: str) -> bool:
    """Whether a source file is one of kdc's."""
    return file.startswith(_OWN)


def user_lines(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    """(file, line) of the frame and of those that called it, innermost first, up to the first one of kdc's.

    Torch's and Python's own are left out.
    """
    while frame is not None:
        file = frame.f_code.co_filename
        if is_own(file):
            return
        if not _is_machinery(file):
            yield file, frame.f_lineno
        frame = frame.f_back


@contextmanager
def exits_refused() -> Iterator[None]:
    """What the user's code does to end the process inside (`sys.exit`, `exit()`, `raise SystemExit`) is an error.

    An exit of kdc's own goes through. Ctrl-C is another thing, and goes through too.
    Raises: UserError that names the user's file and line, whatever the exit code was.
    """
    try:
        yield
    except SystemExit as raised:
        frames = [frame.filename for frame in traceback.extract_tb(raised.__traceback__)]
        if frames and is_own(frames[-1]):
            raise
        code = "" if raised.code is None else f" ({str(raised.code)[:200]})"
        raise UserError(
            f"the user's code ended the program with SystemExit{code} at {_place(raised)}",
            do="take sys.exit() out of what kdc calls, and raise an exception where something is wrong",
        ) from raised


def _place(raised: SystemExit) -> str:
    """The last line of the traceback that is the user's; where none is, an installed package's."""
    frames = [frame for frame in traceback.extract_tb(raised.__traceback__) if not _is_machinery(frame.filename)]
    frames = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "a line that is not known"


def _is_machinery(file: str) -> bool:
    """Of kdc, torch or Python's standard library."""
    standard = file.startswith(_STANDARD) and not _is_installed(file)
    return standard or file.startswith(("<", *_OWN, _torch()))


def _is_installed(file: str) -> bool:
    return any(folder in file for folder in _INSTALLED)


@cache
def _torch() -> str:
    """Torch's folder, found without importing it."""
    found = find_spec("torch")
    return str(Path(str(found.origin)).parent) + "/" if found is not None else "<"
