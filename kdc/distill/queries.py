"""What a teacher that must be paid for has been asked, and what it said: kept across runs and kills.

Both files are the user's money: the cache's limit does not touch them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdc.core.errors import ModelError
from kdc.core.writing import refuse_link, replacing
from kdc.distill.answers import locked

Floats = np.ndarray[Any, np.dtype[np.float32]]
KEY = 16  # bytes that name a sample
_SUM = 8  # bytes of a record's checksum
_MAGIC = b"kdc-ask\x01"


class Ledger:
    """How many samples were sent, written down before they are: a kill may count some that were not, never too few."""

    def __init__(self, path: Path, budget: int, what: str) -> None:
        self.path, self.budget, self.what = path, budget, what

    @property
    def spent(self) -> int:
        """Samples sent so far."""
        try:
            count: int = json.loads(self.path.read_text())["spent"]
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{self.path} is damaged: how often {self.what} was asked is not known",
                do='write {"spent": N} into it, with the number that its service tells you',
            ) from error
        return count

    def require(self, count: int) -> None:
        """Raises: ModelError where so many more samples would pass the budget; nothing is spent."""
        spent = self.spent
        if spent + count > self.budget:
            raise ModelError(
                f"{self.what}: {count} more samples are to be asked, and {max(0, self.budget - spent)} of its "
                f"{self.budget} queries are left: {spent + count - self.budget} more are needed",
                do=f"set queries to {spent + count}, or train with fewer samples, with views: 1, or without augmentation",
            )

    def spend(self, count: int) -> None:
        """Count so many samples as sent.

        Raises: ModelError where they would pass the budget; nothing is spent then.
        """
        with locked(self.path.with_suffix(".lock")):
            self.require(count)
            with replacing(self.path) as partial, partial.open("w") as file:
                json.dump({"schema_version": 1, "spent": self.spent + count}, file)
                file.flush()
                os.fsync(file.fileno())


class AnswerLog:
    """Answers by sample, appended as they come: a record is a sample's key, its answer and a checksum.

    What a kill left of a record is cut off. Who appends holds the lock (`kdc.distill.answers.locked`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.width: int | None = None  # values of one answer
        self._places: dict[bytes, int] = {}
        self._end = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Read what was appended since, here or by another process; cut off what is not whole."""
        refuse_link(self.path, "the answers of a teacher that was asked,")
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            if self.width is None:
                head = file.read(len(_MAGIC) + 4)
                if len(head) < len(_MAGIC) + 4 or not head.startswith(_MAGIC):
                    file.truncate(0)
                    return
                self.width = int.from_bytes(head[len(_MAGIC) :], "little")
                self._end = len(head)
            file.seek(self._end)
            size = KEY + 4 * self.width + _SUM
            while len(record := file.read(size)) == size and _sum(record[:-_SUM]) == record[-_SUM:]:
                self._places[record[:KEY]] = self._end
                self._end += size
            file.truncate(self._end)

    def append(self, keys: Sequence[bytes], answers: Floats) -> None:
        """Add answers [n, width], and see them on the disk."""
        refuse_link(self.path, "the answers of a teacher that was asked,")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self._end
        if new:
            self.width = answers.shape[1]
        records = [key + row.astype("<f4").tobytes() for key, row in zip(keys, answers, strict=True)]
        head = _MAGIC + answers.shape[1].to_bytes(4, "little") if new else b""
        with self.path.open("ab") as file:
            file.write(head + b"".join(record + _sum(record) for record in records))
            file.flush()
            os.fsync(file.fileno())
        if new:
            self.width = None  # read the head again
        self.refresh()

    def read(self, keys: Sequence[bytes]) -> Floats:
        """The answers of these samples, [len(keys), width]."""
        assert self.width is not None
        found = np.empty((len(keys), self.width), np.float32)
        with self.path.open("rb") as file:
            for place, key in enumerate(keys):
                file.seek(self._places[key] + KEY)
                found[place] = np.frombuffer(file.read(4 * self.width), "<f4")
        return found


def sample_keys(arrays: Sequence[np.ndarray[Any, Any]]) -> list[bytes]:
    """What names each sample: a digest of all its inputs, their types and shapes. Args: arrays: [n, ...] each."""
    keys = []
    for number in range(len(arrays[0])):
        digest = hashlib.blake2b(digest_size=KEY)
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape[1:]}".encode())
            digest.update(np.ascontiguousarray(array[number]).tobytes())
        keys.append(digest.digest())
    return keys


def _sum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_SUM).digest()
