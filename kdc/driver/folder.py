"""The output folder: whose it is, who is in it now, and what lies in it at the end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdc.core.errors import FolderError
from kdc.core.store import sha256_of

PRIVATE = ".kdc"  # everything that is not a result: store, work, caches, log
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MARKER = "run.json"
MANIFEST = "manifest.json"


def check(out: Path, identity: Mapping[str, str]) -> None:
    """See whether `out` can be this run's folder, and leave it as it is.

    Args: identity: what makes a run this run (teacher and data), not its settings: those may change between commands.
    Raises: FolderError where the folder is a file, another run's, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise FolderError(f"--out {out} is a file", do="name a folder")
    if out.is_dir() and any(out.iterdir()):
        _check_owner(out, identity)
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
        lock = (private / "lock").open("a+")
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
            if not (private / MARKER).exists():
                write_text(private / MARKER, json.dumps(dict(identity), indent=1))
            yield private
        except Exception as error:
            # safetensors and onnx give the system's words, with its number inside
            full = isinstance(error, OSError) and error.errno in FULL
            if full or any(f"(os error {number})" in str(error) for number in FULL):
                raise _full(out) from error
            raise


def _check_owner(out: Path, identity: Mapping[str, str]) -> None:
    try:
        owner = json.loads((out / PRIVATE / MARKER).read_text())
    except (OSError, ValueError):
        if {path.name for path in out.iterdir()} == {PRIVATE}:
            return  # a first run that was killed before it could put its name up
        raise FolderError(f"{out} is not empty, and not a run of kdc", do="name a new or an empty folder") from None
    differing = [name for name in identity if owner.get(name) != identity[name]]
    if differing:
        was = ", ".join(f"{name} {owner.get(name)}" for name in differing)
        wanted = ", ".join(f"{name} {identity[name]}" for name in differing)
        raise FolderError(f"{out} holds another run: {was}; this one has {wanted}", do="name another --out")


def _full(out: Path) -> FolderError:
    free = shutil.disk_usage(out).free / 1e6
    return FolderError(
        f"the disk of {out} is full ({free:.0f} MB free); every finished step is kept",
        do="free some space and run the same command again: it goes on from here",
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def publish(out: Path, files: Mapping[str, Path | str]) -> None:
    """Put the results in place, each whole or not at all, and the manifest of their SHA-256 last.

    Args: files: name in `out`: a file to copy, or the text itself.
    """
    for name, content in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        if isinstance(content, Path):
            partial = out / (name + ".part")
            shutil.copyfile(content, partial)
            partial.replace(out / name)
        else:
            write_text(out / name, content)
    manifest = {name: sha256_of(out / name) for name in sorted(files)}
    write_text(out / MANIFEST, json.dumps({"schema_version": 1, "sha256": manifest}, indent=1) + "\n")


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
    except (ValueError, KeyError, TypeError):
        raise FolderError(
            f"{out}/{MANIFEST} is damaged", do="run `kdc compress` again: finished steps are kept"
        ) from None
    problems = []
    for name, sha in manifest.items():
        if not (out / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(out / name) != sha:
            problems.append(f"{name} is not the file that was written")
    return problems
