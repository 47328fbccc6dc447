"""Putting files into a folder of the user's: what kdc did not write stays, unless the user says otherwise.

What kdc wrote is known by its SHA-256, from a journal in the folder. A file that was changed since is the user's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePath

from kdc.core.errors import DamagedError, FolderError
from kdc.core.store import sha256_of
from kdc.core.writing import is_plain_file, read_checked, refuse_link, replacing, write_checked, write_text

Sums = Mapping[str, Collection[str]]
"""By a file's name in the folder: the SHA-256 that kdc may have written there."""


def journal_of(path: Path) -> dict[str, list[str]] | None:
    """The sums in a journal; None where there is none, or it is damaged."""
    try:
        return read_checked(path)
    except DamagedError:
        return None


def place(out: Path, files: Mapping[str, Path | str], journal: Path, written: Sums, *, force: bool = False) -> None:
    """Put files into a folder, each whole or not at all, in their order.

    Args: files: by name in `out` (a "/" in it is a folder): a file to copy, or the text itself. journal: where it is noted
        what was written. written: what was written before. force: overwrite what kdc did not write, too.
    Raises: FolderError where a file that kdc did not write stands in the place of another; nothing is written then.
    """
    sums = {
        name: sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content.encode()).hexdigest()
        for name, content in files.items()
    }
    for name in files:
        for above in PurePath(name).parents[:-1]:
            refuse_link(out / above, "in --out,")
    same = {name for name, sha in sums.items() if is_plain_file(out / name) and sha256_of(out / name) == sha}
    changed = [name for name in sums if name not in same]
    if not force:
        refuse_foreign(out, changed, written)
    # A user's own file that happens to be the same is left, and stays the user's.
    ours = {name: sums[name] for name in sums if name not in same or sums[name] in written.get(name, ())}
    # Noted before the first is replaced: a run that is killed in between finds its own files again.
    journal.parent.mkdir(exist_ok=True)
    write_checked(journal, {**written, **{name: sorted({sha, *written.get(name, ())}) for name, sha in ours.items()}})
    for name in changed:
        content, path = files[name], out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            with replacing(path) as partial:
                shutil.copyfile(content, partial)
        else:
            write_text(path, content)
    write_checked(journal, {**written, **{name: [sha] for name, sha in ours.items()}})


def refuse_foreign(out: Path, names: Collection[str], written: Sums) -> None:
    """Raises: FolderError where one of these stands in `out`, and is not what kdc wrote."""
    for name in sorted(names):
        path = out / name
        if os.path.lexists(path) and not (is_plain_file(path) and sha256_of(path) in written.get(name, ())):
            raise FolderError(
                f"{path} is not what kdc wrote, and would be overwritten",
                do="move it away, or overwrite it with --force",
            )


def check_place(path: Path, option: str, is_ours: Callable[[Path], bool], *, force: bool = False) -> None:
    """See whether a file that the user named may be written, before the work that it is to hold.

    Args: option: as it was typed, as `--html`. is_ours: whether a file that stands there was written by kdc.
    Raises: FolderError where a link, a folder, or a file that kdc did not write stands there. A pipe or a terminal may.
    """
    if not path.is_file():
        if path.is_dir():
            raise FolderError(f"{option} {path} is a folder", do="name a file in it")
        if not path.exists():
            refuse_link(path, option)
        return
    refuse_link(path, option)
    if not force and path.stat().st_size and not is_ours(path):
        raise FolderError(
            f"{option} {path} is there, and kdc did not write it", do="name another file, or overwrite it with --force"
        )
