"""Every finished step under a key that covers all that could change its result.

An entry is a folder `STEP-KEY/` that is written beside and renamed in, so that it is there whole or not at all. Its
`entry.json` holds the parts that the key was made of (what `kdc why` compares), the SHA-256 of each file and one of its
own. An entry that is not what was written, whatever became of it, is removed, and the step is made anew. A step that is
under way keeps its checkpoints in `work/KEY/`. A failure is recorded in `failures/`, and never served.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc.core.errors import DamagedError
from kdc.core.observe import Emit, Note, silent
from kdc.core.writing import (
    discard,
    is_plain_file,
    is_plain_folder,
    make_folder,
    partial_name,
    read_checked,
    write_checked,
    write_text,
)

ENTRY = "entry.json"
Parts = dict[str, Any]
KEY_DIGITS = 20  # of the key, in a folder's name; the whole key stands in entry.json


def key_of(parts: Parts) -> str:
    """SHA-256 of the parts as canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Entry:
    """A finished step: its folder, what its key was made of, and what it recorded."""

    folder: Path
    key: str
    step: str
    parts: Parts
    record: dict[str, Any]
    written: float

    def file(self, name: str) -> Path:
        """The path of one of the entry's files."""
        return self.folder / name


class Store:
    """The folder of all finished steps of one run folder. `emit` is told of entries that are damaged."""

    def __init__(self, root: Path, emit: Emit = silent) -> None:
        self.root, self._emit = root, emit

    def find(self, step: str, key: str) -> Entry | None:
        """The entry under this key, or None; an entry that is not what was written is removed, not served."""
        folder = self._folder(step, key)
        if not os.path.lexists(folder):
            return None
        try:
            return _whole(folder, key)
        except (OSError, DamagedError) as error:
            self.drop(step, key, str(error))
            return None

    def drop(self, step: str, key: str, reason: str) -> None:
        """Remove an entry that cannot be used, and say so: the step is made anew."""
        folder = self._folder(step, key)
        self._emit(Note(f"stored {folder.name} is damaged ({reason}): it is made anew"))
        discard(folder)

    def write(
        self, step: str, parts: Parts, record: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]
    ) -> Entry:
        """Write an entry; `files` maps a name to what writes the file at the path it is given."""
        key = key_of(parts)
        folder = self._folder(step, key)
        make_folder(self.root)
        partial = partial_name(folder)
        partial.mkdir()
        try:
            for name, write in files.items():
                write(partial / name)
            digests = {name: sha256_of(partial / name) for name in files}
            content = {
                "key": key,
                "step": step,
                "parts": parts,
                "record": {**record, "files": digests},
                "written": time.time(),
            }
            write_checked(partial / ENTRY, content)
            discard(folder)
            partial.rename(folder)
        except BaseException:
            discard(partial)
            raise
        discard(self.work(key))
        return _read(folder)

    def work(self, key: str) -> Path:
        """Where the step under this key keeps its checkpoints until it is written."""
        return self.root / "work" / key[:KEY_DIGITS]

    def fail(self, step: str, parts: Parts, error: BaseException) -> None:
        """Record that the step failed, and how."""
        key = key_of(parts)
        folder = self.root / "failures"
        make_folder(folder)
        content = {"step": step, "key": key, "error": f"{type(error).__name__}: {error}", "at": time.time()}
        path = folder / f"{step}-{key[:KEY_DIGITS]}.json"
        if is_plain_folder(path):
            discard(path)
        write_text(path, json.dumps(content, indent=1))

    def entries(self, step: str) -> list[Entry]:
        """Every entry of a step that can be read, the newest first."""
        found = []
        for folder in self.root.glob(f"{step}-*"):
            try:
                found.append(_read(folder))
            except DamagedError:
                continue  # `find` removes it, when its step is due
        return sorted(found, key=lambda entry: -entry.written)

    def _folder(self, step: str, key: str) -> Path:
        return self.root / f"{step}-{key[:KEY_DIGITS]}"


def _whole(folder: Path, key: str) -> Entry:
    """Raises: DamagedError where the entry or one of its files is not what was written, OSError where one cannot be read."""
    entry = _read(folder)
    if entry.key != key:
        raise DamagedError(f"{ENTRY} is another step's")
    for name, sha in entry.record["files"].items():
        if not is_plain_file(folder / name) or sha256_of(folder / name) != sha:
            raise DamagedError(f"{name} is not what was written")
    return entry


def _read(folder: Path) -> Entry:
    """Raises: DamagedError where the folder or its `entry.json` is not what was written."""
    if not is_plain_folder(folder):
        raise DamagedError("it is no folder")
    content = read_checked(folder / ENTRY)
    try:
        return Entry(folder, content["key"], content["step"], content["parts"], content["record"], content["written"])
    except KeyError as error:
        raise DamagedError(f"{ENTRY} lacks {error}") from error
