"""Sweeping the caches, as an application's other work does between two runs of a model: what makes a run cold.

A buffer twice as large as the last-level cache is read and written, so that the model's weights, activations and inputs
are out of every cache that data and code share, and their pages out of the address translation's; then some of the
interpreter's own code is run, because data alone leave the first level's instructions where they are. Files are not
dropped from memory: a cold run is one of a model that stays loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

UNKNOWN_BYTES = 64 * 2**20  # swept where the cache's size cannot be read
TIMES_CACHE = 2  # a cache does not throw out in strict order of age
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_OTHER_WORK = {str(number): [number, str(number), {"third": number / 3}] for number in range(200)}


def last_level_bytes(root: Path = Path("/")) -> int | None:
    """The size of the largest cache that core 0 has; None where Linux does not tell it."""
    found = []
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, size = ((index / name).read_text().strip() for name in ("type", "size"))
            if kind != "Instruction":
                found.append(int(size.rstrip("KMG")) * _UNITS.get(size[-1:], 1))
        except (OSError, ValueError):
            continue  # a file that is absent, or that says something else
    return max(found, default=None)


def sweep_bytes(root: Path = Path("/")) -> int:
    """How much is read and written between two cold runs."""
    cache = last_level_bytes(root)
    return UNKNOWN_BYTES if cache is None else TIMES_CACHE * cache


class Sweep:
    """Call it between two runs. Every core that the model runs on is swept, for each has caches of its own.

    Args: cores: that the model runs on; None where it is not pinned. size: bytes, for each core.
    """

    def __init__(self, cores: Sequence[int] | None = None, size: int | None = None) -> None:
        # the one core of a pinned process is swept in the thread that runs the model
        self._cores = tuple(cores) if cores is not None and len(cores) > 1 else ()
        words = (sweep_bytes() if size is None else size) // 8
        self.buffers = [np.zeros(words, np.int64) for _ in self._cores or (0,)]
        self._pool = ThreadPoolExecutor(len(self._cores)) if self._cores else None

    def __call__(self) -> None:
        if self._pool is None:
            _sweep(self.buffers[0])
        else:
            list(self._pool.map(_sweep_on, self._cores, self.buffers))


def _sweep_on(core: int, buffer: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    os.sched_setaffinity(0, (core,))  # of this thread alone; cores are only given where this can be done
    _sweep(buffer)


def _sweep(buffer: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    np.add(buffer, 1, out=buffer)
    json.loads(json.dumps(_OTHER_WORK))
