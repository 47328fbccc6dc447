"""Temporary folders: all of a process's lie in one folder of its own, which is gone when the process is.

That folder is `kdc-UID-RANDOM` in the system's temporary folder, for its user alone (mode 0700). As long as its process
lives it holds a lock on the folder, which the system lets go of however the process ends. So a folder without a lock was
left by a process that was killed: the next process of the same user that needs a folder removes it, and so does the start
of every command. Links are never followed.

Processes that kdc starts get the folder as their TMPDIR (`environment`): what they or their libraries leave goes with it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdc.core.errors import FolderError

if sys.platform != "win32":
    import fcntl

PREFIX = "kdc-"
FRESH = "new-"
"""In the name of a folder that is not locked yet, or cannot be: on Windows, and on file systems without locks."""
FRESH_SECONDS = 7 * 24 * 3600.0
"""After which such a folder counts as left behind."""

_making = threading.Lock()
_own: dict[int, Path] = {}  # by the process's number: a fork is another process


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A folder that is gone after the block, however that ends.

    Args: purpose: a word for its name, for who looks at it.
    Raises: FolderError as `lasting_folder` does.
    """
    folder = lasting_folder(purpose)
    try:
        yield folder
    finally:
        remove(folder)


def lasting_folder(purpose: str) -> Path:
    """A folder that is gone when this process ends, or when it is removed before.

    Raises: FolderError where the system's temporary folder cannot be written to.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=_base()))
    except OSError as error:
        raise FolderError(
            f"no temporary folder can be made: {error.strerror}",
            do="free some space there, or name another folder in the environment variable TMPDIR",
        ) from error


def remove(folder: Path) -> None:
    """Remove a folder with all that it holds; what cannot be removed now is, with the process's folder, at its end."""
    shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Variables for a process that this one starts and waits for: its temporary files lie in this one's folder."""
    return {"TMPDIR": str(_base())}


def end() -> None:
    """Remove this process's folder now, and all that is in it."""
    _end(os.getpid())


def sweep() -> None:
    """Remove what this user's processes left that are no more."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(_prefix()):
                _remove_dead(entry)


def _base() -> Path:
    with _making:
        pid = os.getpid()
        if pid not in _own or not _own[pid].is_dir():
            _own.clear()
            sweep()
            _own[pid] = _made()
            atexit.register(_end, pid)
        return _own[pid]


def _made() -> Path:
    """A new folder, locked before it has the name that says that its lock counts."""
    fresh = Path(tempfile.mkdtemp(prefix=_prefix() + FRESH))
    if not _lock(fresh):
        return fresh
    return fresh.rename(fresh.with_name(fresh.name.replace(_prefix() + FRESH, _prefix())))


def _lock(folder: Path) -> bool:
    """Hold a lock on a folder until this process ends; whether that is possible."""
    if sys.platform == "win32":
        return False
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return False
    return True  # and the number stays open: it is the lock


def _end(pid: int) -> None:
    if os.getpid() == pid and pid in _own:
        remove(_own.pop(pid))


def _remove_dead(entry: os.DirEntry[str]) -> None:
    with suppress(OSError):  # another process removes it too, or it cannot be removed
        status = entry.stat(follow_symlinks=False)
        if not entry.is_dir(follow_symlinks=False) or (sys.platform != "win32" and status.st_uid != os.getuid()):
            return
        if sys.platform == "win32" or entry.name.startswith(_prefix() + FRESH):
            if time.time() - status.st_mtime > FRESH_SECONDS:
                remove(Path(entry.path))
            return
        number = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(Path(entry.path))
        finally:
            os.close(number)


def _prefix() -> str:
    return f"{PREFIX}{os.getuid() if sys.platform != 'win32' else 'user'}-"
