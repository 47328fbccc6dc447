"""Samples on their way to a measuring process: an .npz with arrays "0", "1", ..., one [n, ...] for each input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.runtime import Array


def write_samples(samples: Sequence[Array] | None, folder: Path) -> Path | None:
    """The file that holds them, in `folder`; None where there are none."""
    if samples is None:
        return None
    path = folder / "inputs.npz"
    arrays: dict[str, Any] = {str(index): array for index, array in enumerate(samples)}
    np.savez(path, **arrays)
    return path


def read_samples(path: Path | None) -> list[Array] | None:
    """What `write_samples` was given."""
    if path is None:
        return None
    with np.load(path, allow_pickle=False) as stored:
        return [stored[str(index)] for index in range(len(stored.files))]
