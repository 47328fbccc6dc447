"""A file of a teacher's answers to one view: whole blocks with checksums, mapped into memory, safe against a kill.

    magic, length of the header, header (JSON), SHA-256 of the header      up to the next multiple of 4096 bytes
    checksums, 16 bytes for each block                                     up to the next multiple of 4096 bytes
    rows, row_bytes for each sample, in the order of the view

A block is a fixed number of samples, the last one what is left. Its checksum is BLAKE2b over its rows, keyed by the
header's SHA-256 and the block's number, so that neither another file's block nor another block of this one passes. The
file has its full size from the start; a block counts as there when its checksum is right, and nothing else says so. So
a kill at any byte leaves a file that goes on from the blocks that are whole, a broken block is found when the file is
opened and computed anew, and no half result is ever read.

Two processes may write one file: a block is written under the lock, and only where it is not there yet, so that no block
that someone reads is ever changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from kdc.core.errors import FolderError
from kdc.core.writing import NO_LINKS, discard, is_plain_file, partial_name, refuse_link
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.forms import Bytes, Rebuilt, decode, decode_pairs, row_bytes
from kdc.distill.sparse import SparseRows

MAGIC = b"kdc-ans\x01"
PAGE = 4096
CHECKSUM = 16  # bytes
HEADER_MOST = 2**20  # bytes; a length beyond it is damage
SUFFIX = ".answers"


class Source(BaseModel, frozen=True, extra="forbid"):
    """What answers are of: two files of equal sources hold the same answers."""

    teacher: str  # digest
    data: str  # fingerprint, which covers the augmentation's source
    seed: int
    view: str  # key
    form: AnswerForm

    def name(self) -> str:
        """The file's name, which belongs to this source alone."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        shown = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in self.view)[:40]
        return f"view-{shown}-{digest[:16]}{SUFFIX}"


class Header(BaseModel, frozen=True, extra="forbid"):
    """What stands at a file's head: all that is needed to read it."""

    schema_version: Literal[1] = 1
    source: Source
    samples: int
    shape: tuple[int, ...]  # of one sample's outputs
    dtype: Literal["float32"] = "float32"  # as they are read
    block: int  # samples

    @property
    def form(self) -> AnswerForm:
        """Of the rows."""
        return self.source.form

    def bytes(self) -> bytes:
        """As it is written."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()

    @property
    def blocks(self) -> int:
        """How many there are."""
        return -(-self.samples // self.block)

    @property
    def row_bytes(self) -> int:
        """Of one sample."""
        return row_bytes(self.form, self.shape)

    @property
    def checksums_at(self) -> int:
        """Where the checksums begin."""
        return _page(len(MAGIC) + 4 + len(self.bytes()) + 32)

    @property
    def rows_at(self) -> int:
        """Where the rows begin."""
        return _page(self.checksums_at + CHECKSUM * self.blocks)

    @property
    def size(self) -> int:
        """Of the whole file, in bytes."""
        return self.rows_at + self.samples * self.row_bytes

    def rows_of(self, block: int) -> slice:
        """The samples of a block."""
        return slice(block * self.block, min(self.samples, (block + 1) * self.block))


class Answers:
    """Rows of a view's answers, wherever they lie. Read-only."""

    def __init__(self, header: Header, rows: Bytes, rebuilt: Rebuilt = "estimate") -> None:
        self.header, self.rebuilt = header, rebuilt
        self._rows = rows

    def __len__(self) -> int:
        return self.header.samples

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """The outputs of these samples, [len(index), ...], float32, of the caller's own."""
        return decode(self._some(index), self.header.form, self.header.shape, self.rebuilt)

    def pairs(self, index: torch.Tensor) -> SparseRows:
        """The same of a sparse file as classes and weights."""
        return decode_pairs(self._some(index), self.header.form, self.header.shape)

    def _some(self, index: torch.Tensor) -> Bytes:
        # take copies whole rows; indexing a mapped array does so byte by byte
        return self._rows.take(index.numpy(), axis=0)


class AnswerFile:
    """An open file: which of its blocks are there, and a writer of those that are not."""

    def __init__(self, path: Path, header: Header, descriptor: int, lock: Path) -> None:
        self.path, self.header, self.lock = path, header, lock
        self._descriptor = descriptor
        mapped = mmap.mmap(descriptor, header.size, access=mmap.ACCESS_READ)
        self._checksums: Bytes = np.frombuffer(mapped, np.uint8, CHECKSUM * header.blocks, header.checksums_at).reshape(
            header.blocks, CHECKSUM
        )
        self.rows: Bytes = np.frombuffer(mapped, np.uint8, header.samples * header.row_bytes, header.rows_at).reshape(
            header.samples, header.row_bytes
        )
        self._key = hashlib.sha256(header.bytes()).digest()

    def missing(self) -> list[int]:
        """The blocks that are to be computed: not written yet, half written, or changed since. Reads the whole file."""
        return [block for block in range(self.header.blocks) if not self._is_there(block)]

    def write(self, block: int, rows: Bytes) -> None:
        """Write a block, unless it is there: then what is there stays."""
        expected = self.header.rows_of(block)
        if rows.shape != (expected.stop - expected.start, self.header.row_bytes):
            raise ValueError(f"block {block} has {rows.shape}")
        with locked(self.lock):
            if not self._is_there(block):
                content = rows.tobytes()
                _write_all(self._descriptor, content, self.header.rows_at + expected.start * self.header.row_bytes)
                _write_all(self._descriptor, self._sum(block, content), self.header.checksums_at + CHECKSUM * block)

    def close(self) -> None:
        """Let go of the file; it may be evicted from now on. Rows that were taken from it stay readable."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # the mapping has a copy of the descriptor, which would hold it
        os.close(self._descriptor)

    def _is_there(self, block: int) -> bool:
        found: bytes = self._checksums[block].tobytes()
        return found == self._sum(block, self.rows[self.header.rows_of(block)])

    def _sum(self, block: int, content: Any) -> bytes:
        return hashlib.blake2b(
            content, digest_size=CHECKSUM, key=self._key, person=block.to_bytes(16, "little")
        ).digest()


def opened(path: Path, source: Source, lock: Path) -> AnswerFile | None:
    """The file at this path, held so that nobody evicts it; None where there is none, or its head is broken.

    Raises: FolderError where the file holds the answers of another teacher, other data or another view.
    """
    if not is_plain_file(path):
        discard(path)  # a link, a folder, or what else stands in its place
        return None
    descriptor = os.open(path, os.O_RDWR | NO_LINKS)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        header = _header(descriptor)
        if header is None or os.fstat(descriptor).st_size != header.size:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        _refuse_another(path, header.source, source)
        os.utime(path)
    except BaseException:
        os.close(descriptor)
        raise
    return AnswerFile(path, header, descriptor, lock)


def created(path: Path, header: Header, lock: Path) -> AnswerFile:
    """A new file without any block, its room on the disk taken.

    Raises: OSError where the disk has no room for it.
    """
    refuse_link(path.parent, "the folder of the teacher's answers")
    if not path.parent.is_dir():
        discard(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    text = header.bytes()
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o644)
    try:
        head = MAGIC + len(text).to_bytes(4, "little") + text + hashlib.sha256(text).digest()
        _write_all(descriptor, head, 0)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, header.size)  # a full disk is met now, and not in the middle
        else:
            os.truncate(descriptor, header.size)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        partial.replace(path)
    except BaseException:
        os.close(descriptor)
        partial.unlink(missing_ok=True)
        raise
    return AnswerFile(path, header, descriptor, lock)


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """The lock of a cache's folder, held alone: among threads and processes."""
    refuse_link(lock.parent, "the folder of the teacher's answers")
    lock.parent.mkdir(parents=True, exist_ok=True)
    if not is_plain_file(lock):
        discard(lock)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _header(descriptor: int) -> Header | None:
    start = os.pread(descriptor, len(MAGIC) + 4, 0)
    if len(start) < len(MAGIC) + 4 or not start.startswith(MAGIC):
        return None
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if length > HEADER_MOST:
        return None
    rest = os.pread(descriptor, length + 32, len(start))
    text, digest = rest[:length], rest[length:]
    if hashlib.sha256(text).digest() != digest:
        return None
    try:
        return Header.model_validate_json(text)
    except ValidationError:  # of another version of kdc
        return None


def _refuse_another(path: Path, found: Source, expected: Source) -> None:
    for name, what in (
        ("teacher", "teacher"),
        ("data", "data"),
        ("seed", "seed"),
        ("view", "view of the training split"),
    ):
        if getattr(found, name) != getattr(expected, name):
            raise FolderError(
                f"{path} holds answers for another {what}: found {_short(getattr(found, name))}, "
                f"expected {_short(getattr(expected, name))}",
                do="remove that file, or name another folder for the teacher's answers",
            )
    if found.form != expected.form:
        raise FolderError(
            f"{path} holds answers in another form: found {found.form}, expected {expected.form}",
            do="remove that file, or name another folder for the teacher's answers",
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:16]}..."


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _page(size: int) -> int:
    return -(-size // PAGE) * PAGE
