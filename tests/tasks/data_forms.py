"""Data as a user's callable may return it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset, IterableDataset

from kdc.core.data import Splits
from kdc.core.errors import DataError
from kdc.tasks.data import load_splits

WHERE = "my/data.py:load"
NAMES = ("train", "calibration", "validation", "test")


def pair(count: int = 40, seed: int = 0, classes: int = 4, shape: tuple[int, ...] = (1, 4, 4)):
    images = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
    return images, np.arange(count) % classes


def four(**changed: Any) -> dict[str, Any]:
    return {name: pair(seed=seed) for seed, name in enumerate(NAMES)} | changed


def load(given: Any, seed: int = 0, source: str = "") -> Splits:
    return load_splits(given, seed, WHERE, source)


def refused(given: Any, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load(given)
    message = str(caught.value)
    for part in (WHERE, "\n  → ", *parts):
        assert part in message, f"{part!r} is not in: {message}"


class Samples(Dataset[Any]):
    """Samples by index, made by a function."""

    def __init__(self, count: int, sample: Callable[[int], Any]) -> None:
        self.count, self.sample = count, sample

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Stream(IterableDataset[Any]):
    def __init__(self, images: Any, labels: Any) -> None:
        self.samples = list(zip(images, labels, strict=True))
        self.reads = 0

    def __iter__(self):
        self.reads += 1
        yield from self.samples
