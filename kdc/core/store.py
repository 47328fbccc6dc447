"""Every finished step under a key that covers all that could change its result.

An entry is a folder `STEP-KEY/` that is written beside and renamed in, so that it is there whole or not at all. Its
`entry.json` holds the parts that the key was made of (what `kdc why` compares) and the SHA-256 of each file. A step that
is under way keeps its checkpoints in `work/KEY/`. A failure is recorded in `failures/`, and never served.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """The folder of all finished steps of one run folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, step: str, key: str) -> Entry | None:
        """The entry under this key, or None; an entry whose files are not what it says is removed, not served."""
        folder = self._folder(step, key)
        entry = _read(folder)
        if entry is None or entry.key != key:
            return None
        files: dict[str, str] = entry.record["files"]
        if any(not (folder / name).is_file() or sha256_of(folder / name) != sha for name, sha in files.items()):
            shutil.rmtree(folder)
            return None
        return entry

    def write(
        self, step: str, parts: Parts, record: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]
    ) -> Entry:
        """Write an entry; `files` maps a name to what writes the file at the path it is given."""
        key = key_of(parts)
        folder = self._folder(step, key)
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
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
            (partial / "entry.json").write_text(json.dumps(content, indent=1))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        shutil.rmtree(self.work(key), ignore_errors=True)
        entry = _read(folder)
        assert entry is not None
        return entry

    def work(self, key: str) -> Path:
        """Where the step under this key keeps its checkpoints until it is written."""
        return self.root / "work" / key[:KEY_DIGITS]

    def fail(self, step: str, parts: Parts, error: BaseException) -> None:
        """Record that the step failed, and how."""
        key = key_of(parts)
        folder = self.root / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"step": step, "key": key, "error": f"{type(error).__name__}: {error}", "at": time.time()}
        (folder / f"{step}-{key[:KEY_DIGITS]}.json").write_text(json.dumps(content, indent=1))

    def entries(self, step: str) -> list[Entry]:
        """Every entry of a step, the newest first."""
        found = [_read(folder) for folder in self.root.glob(f"{step}-*") if not folder.name.endswith(".part")]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.written)

    def _folder(self, step: str, key: str) -> Path:
        return self.root / f"{step}-{key[:KEY_DIGITS]}"


def _read(folder: Path) -> Entry | None:
    try:
        content = json.loads((folder / "entry.json").read_text())
        return Entry(folder, content["key"], content["step"], content["parts"], content["record"], content["written"])
    except (OSError, ValueError, KeyError):
        return None
