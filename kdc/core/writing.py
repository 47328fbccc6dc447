"""Writing files: whole or not at all, under a name that nobody can foresee, and never through a symbolic link.

A file is written beside its place, as `.NAME.RANDOM.part`, and renamed into it: a link that stands there is replaced,
and what it leads to is left alone. Links above a folder that the user named are the user's own layout and are followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdc.core.errors import DamagedError, FolderError

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag
PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.part")
"""The name of a file or folder that is being written; one that is left was left by a process that was killed."""
_SUM = "sha256"


def partial_name(path: Path) -> Path:
    """A name beside a path that nobody can foresee; nothing is made."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, which takes its place when the block ends, and is removed when it fails.

    Raises: OSError where the folder cannot be written to, or a folder stands at `path`.
    """
    partial = partial_name(path)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666))
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def is_plain_file(path: Path) -> bool:
    """Whether a file stands at this path itself: no link, folder, pipe or device, so that reading it cannot block."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_plain_folder(path: Path) -> bool:
    """Whether a folder stands at this path itself, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def refuse_link(path: Path, what: str) -> None:
    """Raises: FolderError where the path itself is a symbolic link. Args: what: its name for the user, as `--out`."""
    if path.is_symlink():
        raise FolderError(
            f"{what} {path} is a symbolic link to {path.readlink()}, and kdc writes through none",
            do="name what it leads to, or remove the link",
        )


def make_folder(path: Path) -> None:
    """Make a folder of kdc's own, and those above it. What stands in its place (a file, a link) is removed."""
    if not is_plain_folder(path):
        discard(path)
        path.mkdir(parents=True, exist_ok=True)


def discard(path: Path) -> None:
    """Remove what stands at a path: a file, a folder with all that is in it, or a link and not what it leads to.

    Raises: FolderError where it cannot be removed.
    """
    try:
        if is_plain_folder(path):
            for folder in (path, *(Path(top, name) for top, names, _ in os.walk(path) for name in names)):
                if is_plain_folder(folder):
                    folder.chmod(0o700)  # a folder without permissions keeps what is in it
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except NotADirectoryError:
        return  # what is above it is no folder: there is nothing
    except OSError as error:
        raise FolderError(
            f"{path} is damaged and cannot be removed: {error.strerror}", do="remove it by hand"
        ) from error


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain JSON values with a SHA-256 of them, for `read_checked`. A folder that stands there is removed."""
    if is_plain_folder(path):
        discard(path)
    plain = json.loads(json.dumps(content))
    write_text(path, json.dumps({**plain, _SUM: _digest(plain)}, indent=1))


def read_checked(path: Path) -> dict[str, Any]:
    """What `write_checked` wrote.

    Raises: DamagedError where nothing is there, or anything else than what was written.
    """
    if not os.path.lexists(path):
        raise DamagedError(f"{path.name} is missing")
    if not is_plain_file(path):
        raise DamagedError(f"{path.name} is no file")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
    if not isinstance(content, dict) or content.pop(_SUM, None) != _digest(content):
        raise DamagedError(f"{path.name} is not what was written")
    return content


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
