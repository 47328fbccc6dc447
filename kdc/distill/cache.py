"""The folder of a teacher's answers: bounded, its least recently used views evicted first, never one in use."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

from kdc.core.errors import FolderError
from kdc.core.writing import NO_LINKS, is_plain_file, refuse_link, write_text
from kdc.distill.answers import SUFFIX, AnswerFile, Header, Source, created, locked, opened

SHARE = 4  # of the disk's free room and what the cache has of it, a cache takes one in so many,
MOST = 50 * 10**9  # and this many bytes at most
LOCK = "cache.lock"
OWNER = "teacher.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cache:
    """All files of answers below a folder, together no larger than a limit.

    A file is in use from when it is opened here, in this process or another, until `close`.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        """`limit` in bytes; 0: nothing is read or written. None: a quarter of the free disk, 50 GB at most."""
        self.root, self._limit = root, limit
        self._lock = root / LOCK
        self._open: list[AnswerFile] = []

    @property
    def limit(self) -> int:
        """Bytes."""
        if self._limit is None:
            place = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
            free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in self._files())
            self._limit = min(free // SHARE, MOST)
        return self._limit

    def find(self, path: Path, source: Source) -> AnswerFile | None:
        """The file at this path with the answers of this source, or None.

        Raises: FolderError where it holds other answers, or may not be read or written.
        """
        if self._limit == 0:
            return None
        try:
            with locked(self._lock):
                found = opened(path, source, self._lock)
                if found is not None:
                    self._open.append(found)
                    self._make_room(0)
                return found
        except PermissionError as error:
            raise self._refused(error) from error

    def make(self, path: Path, header: Header) -> AnswerFile | None:
        """A new file, for which others are evicted; None where it does not fit."""
        if header.size > self.limit:
            return None
        try:
            with locked(self._lock):
                found = opened(path, header.source, self._lock)  # another process may have been faster
                if found is None:
                    for left in path.parent.glob(f".*{SUFFIX}.*.part"):
                        left.unlink(missing_ok=True)  # of a process that was killed: who holds the lock is alone here
                    if not self._make_room(header.size):
                        return None
                    found = created(path, header, self._lock)
                self._open.append(found)
                return found
        except PermissionError as error:
            raise self._refused(error) from error
        except OSError as error:
            if error.errno in _NO_ROOM:
                return None
            raise

    def close(self) -> None:
        """Let go of every file."""
        for file in self._open:
            file.close()
        self._open.clear()

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob(f"*{SUFFIX}") if not path.name.startswith(".") and is_plain_file(path)]

    def _make_room(self, wanted: int) -> bool:
        """Evict until `wanted` bytes more are within the limit; nothing where even all would not be enough."""
        files = sorted(((path.stat(), path) for path in self._files()), key=lambda pair: pair[0].st_mtime_ns)
        over = sum(stat.st_size for stat, _ in files) + wanted - self.limit
        held: list[tuple[int, Path]] = []
        try:
            for stat, path in files:
                if over <= 0:
                    break
                descriptor = os.open(path, os.O_RDWR | NO_LINKS)
                held.append((descriptor, path))
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # in use
                    held.pop()
                    os.close(descriptor)
                    continue
                over -= stat.st_size
            if over <= 0 or not wanted:
                for _, path in held:
                    path.unlink(missing_ok=True)
            return over <= 0
        finally:
            for descriptor, _ in held:
                os.close(descriptor)

    def _refused(self, error: OSError) -> FolderError:
        return FolderError(
            f"the teacher's answers cannot be kept in {self.root}: {error.strerror}",
            do="name a folder of your own with --teacher-cache, or keep none with --cache-gb 0",
        )


def claim(folder: Path, teacher: str, data: str) -> None:
    """Make a folder that several runs share this teacher's on these data, or see that it is.

    Args: teacher, data: the digest of all that decides the teacher's answers, and the data's fingerprint.
    Raises: FolderError where the folder is another teacher's, of other data, or cannot be used.
    """
    mine = {"teacher": teacher, "data": data}
    path = folder / OWNER
    refuse_link(folder, "--teacher-cache")
    refuse_link(path, "in --teacher-cache,")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK):
            if not path.exists():
                write_text(path, json.dumps({"schema_version": 1, **mine}, indent=1) + "\n")
                return
            found = json.loads(path.read_text())
    except OSError as error:
        raise FolderError(
            f"--teacher-cache {folder} cannot be used: {error.strerror}", do="name a folder of your own"
        ) from error
    except ValueError as error:
        raise FolderError(
            f"--teacher-cache {folder}: {path.name} is damaged", do="remove the folder, or name another"
        ) from error
    for name, what in (("teacher", "another teacher"), ("data", "other data or another augmentation")):
        if found.get(name) != mine[name]:
            raise FolderError(
                f"--teacher-cache {folder} holds the answers of {what}: found {str(found.get(name))[:16]}, "
                f"expected {mine[name][:16]}",
                do="name another folder: answers of two teachers are never mixed",
            )
