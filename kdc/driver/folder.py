"""The output folder: whose it is, who is in it now, and what lies in it at the end."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdc.core.errors import DamagedError, FolderError
from kdc.core.placing import Sums, journal_of, place, refuse_foreign
from kdc.core.store import sha256_of
from kdc.core.writing import (
    NO_LINKS,
    PARTIAL,
    discard,
    is_plain_file,
    is_plain_folder,
    read_checked,
    refuse_link,
    write_checked,
)

PRIVATE = ".kdc"  # everything that is not a result: store, work, caches, log
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MARKER = "run.json"
MANIFEST = "manifest.json"
WRITTEN = "written.json"  # in the private folder: the SHA-256 of each result that was written, or was about to be
STORE = "store"
_FOLDERS = (STORE, f"{STORE}/work", f"{STORE}/cache", f"{STORE}/failures")


def check(out: Path, identity: Mapping[str, str], results: Collection[str] = ()) -> None:
    """See whether `out` can be this run's folder, and leave it as it is.

    Args: identity: what makes a run this run (teacher and data), not its settings: those may change between commands.
        results: names of files that will be written, and must not stand there unless kdc wrote them.
    Raises: FolderError where the folder is a file, a link, another run's, or cannot be written.
    """
    refuse_link(out, "--out")
    if out.exists() and not out.is_dir():
        raise FolderError(f"--out {out} is a file", do="name a folder")
    if out.is_dir() and any(out.iterdir()):
        for name in (PRIVATE, *(f"{PRIVATE}/{inner}" for inner in _FOLDERS)):
            refuse_link(out / name, "in --out,")
        _check_owner(out, identity)
        if results:
            written = _written(out)
            refuse_foreign(out, {*results, *written}, written)
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise FolderError(f"--out {out} cannot be written: no permission in {place}", do="name a folder of your own")


@contextmanager
def opened(out: Path, identity: Mapping[str, str]) -> Iterator[Path]:
    """The private folder of `out`, held alone until the block ends; made when it is not there.

    Raises: FolderError where the folder cannot be used (see `check`), is in use, or its disk is full.
    """
    check(out, identity)
    private = out / PRIVATE
    try:
        private.mkdir(parents=True, exist_ok=True)
        path = private / "lock"
        if not is_plain_file(path):
            discard(path)
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666), "r+", errors="replace")
    except OSError as error:
        raise FolderError(f"--out {out} cannot be written: {error.strerror}", do="name a folder of your own") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            raise FolderError(
                f"{out} is in use by another kdc (process {lock.read().strip() or 'unknown'})",
                do="wait for it to end, or name another --out",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            _tidy(out, identity)
            yield private
        except Exception as error:
            # safetensors and onnx give the system's words, with its number inside
            full = isinstance(error, OSError) and error.errno in FULL
            if full or any(f"(os error {number})" in str(error) for number in FULL):
                raise _full(out) from error
            raise


def _check_owner(out: Path, identity: Mapping[str, str]) -> None:
    try:
        owner = read_checked(out / PRIVATE / MARKER)
    except DamagedError:
        if {path.name for path in out.iterdir()} == {PRIVATE} or is_plain_folder(out / PRIVATE / STORE):
            return  # a first run that was killed before it could put its name up, or a name that was damaged
        raise FolderError(f"{out} is not empty, and not a run of kdc", do="name a new or an empty folder") from None
    differing = [name for name in identity if owner.get(name) != identity[name]]
    if differing:
        was = ", ".join(f"{name} {owner.get(name)}" for name in differing)
        wanted = ", ".join(f"{name} {identity[name]}" for name in differing)
        raise FolderError(f"{out} holds another run: {was}; this one has {wanted}", do="name another --out")


def _tidy(out: Path, identity: Mapping[str, str]) -> None:
    """Put the run's name up, and remove what was damaged or left half written. Only who holds the lock is here."""
    private = out / PRIVATE
    try:
        read_checked(private / MARKER)
    except DamagedError:
        discard(private / MARKER)
        write_checked(private / MARKER, identity)
    for name in _FOLDERS:
        if os.path.lexists(private / name) and not is_plain_folder(private / name):
            discard(private / name)
    for path in [*out.iterdir(), *private.rglob(".*.part")]:
        if PARTIAL.fullmatch(path.name):
            discard(path)


def _full(out: Path) -> FolderError:
    free = shutil.disk_usage(out).free / 1e6
    return FolderError(
        f"the disk of {out} is full ({free:.0f} MB free); every finished step is kept",
        do="free some space and run the same command again: it goes on from here",
    )


def publish(out: Path, files: Mapping[str, Path | str], *, force: bool = False) -> None:
    """Put the results in place, each whole or not at all, and the manifest of their SHA-256 last.

    Args: files: name in `out`: a file to copy, or the text itself. force: overwrite what kdc did not write, too.
    Raises: FolderError where a file that kdc did not write stands in a result's place; nothing is written then.
    """
    sums = {
        name: sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content.encode()).hexdigest()
        for name, content in sorted(files.items())
    }
    manifest = json.dumps({"schema_version": 1, "sha256": sums}, indent=1) + "\n"
    place(out, {**files, MANIFEST: manifest}, out / PRIVATE / WRITTEN, _written(out), force=force)


def _written(out: Path) -> Sums:
    """The SHA-256 that each result of kdc's may have: by its journal, or by the manifest where that was damaged."""
    found = journal_of(out / PRIVATE / WRITTEN)
    if found is not None:
        return found
    try:
        text = (out / MANIFEST).read_bytes()
        named: dict[str, str] = json.loads(text)["sha256"]
        return {MANIFEST: [hashlib.sha256(text).hexdigest()], **{name: [str(sha)] for name, sha in named.items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def damaged(out: Path) -> list[str]:
    """Each file of a finished run that is missing or not what the manifest says.

    Raises: FolderError where there is no finished run.
    """
    try:
        manifest: dict[str, str] = json.loads((out / MANIFEST).read_text())["sha256"]
    except FileNotFoundError:
        raise FolderError(
            f"{out} holds no finished run: {MANIFEST} is not there", do="run `kdc compress` first"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise FolderError(
            f"{out}/{MANIFEST} is damaged", do="run `kdc compress` again with --force: finished steps are kept"
        ) from None
    problems = []
    for name, sha in manifest.items():
        if not (out / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(out / name) != sha:
            problems.append(f"{name} is not the file that was written")
    return problems
