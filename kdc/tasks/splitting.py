"""Which sample stands in which split: splits made from the training split, and none that stands in two."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch

from kdc.core.contract import named_seed
from kdc.core.data import Split
from kdc.core.errors import DataError

SIZES = {"test": 0.15, "validation": 0.10, "calibration": 0.05}
"""Shares of the training split that a missing split takes; calibration at most `MAX_CALIBRATION` samples."""
MAX_CALIBRATION = 512
_APART = (
    ("train", "calibration"),
    ("train", "validation"),
    ("train", "test"),
    ("calibration", "test"),
    ("validation", "test"),
    ("unlabeled", "validation"),
    ("unlabeled", "test"),
)


def digests(split: Split) -> list[bytes]:
    """[n] hashes of the bytes of each sample's inputs."""
    columns = [tensor.reshape(len(tensor), -1).view(torch.uint8).numpy() for tensor in split.inputs]
    found = []
    for row in range(len(split)):
        sha = hashlib.sha256()
        for column in columns:
            sha.update(column[row].data)
        found.append(sha.digest()[:16])
    return found


def complete(splits: Mapping[str, Split], seed: int, where: str, notes: list[str]) -> dict[str, Split]:
    """The splits with those that are missing split off the training split, each class in its share where it can be.

    A sample that stands in the training split more than once stays there, so that no copy of it crosses over.
    Raises: DataError where the training split is too small.
    """
    train = splits["train"]
    missing = [name for name in SIZES if name not in splits]
    if not missing:
        return dict(splits)
    sizes = {name: max(1, round(SIZES[name] * len(train))) for name in missing}
    if "calibration" in sizes:
        sizes["calibration"] = min(sizes["calibration"], MAX_CALIBRATION)
    keys = digests(train)
    counts = Counter(keys)
    once = np.array([index for index, key in enumerate(keys) if counts[key] == 1], dtype=np.int64)
    if sum(sizes.values()) >= len(once):
        raise DataError(
            f"{where}: the training split has {len(once)} different samples, too few to split off "
            + ", ".join(f"{count} for {name}" for name, count in sizes.items()),
            do=f"return the splits {', '.join(missing)} yourself, or more samples",
        )
    order = _order(once, train.labels.numpy(), seed)
    made, start = dict(splits), 0
    taken = np.zeros(len(train), dtype=bool)
    for name, count in sizes.items():
        chosen = np.sort(order[start : start + count])
        start += count
        taken[chosen] = True
        made[name] = train[torch.from_numpy(chosen)]
        notes.append(f"{where}: no {name} split was given; {count} samples of train were split off by the seed {seed}")
    made["train"] = train[torch.from_numpy(np.flatnonzero(~taken))]
    if len(once) < len(train):
        notes.append(
            f"{where}: {len(train) - len(once)} samples of train have an exact copy there; all were kept in train"
        )
    return made


def refuse_leaks(splits: Mapping[str, Split], where: str) -> None:
    """Raises: DataError where a sample stands in two splits that must be apart, with the first such pair."""
    keys = {name: digests(split) for name, split in splits.items()}
    for one, other in _APART:
        if one not in keys:
            continue  # there need be no unlabeled samples
        first = {key: index for index, key in reversed(list(enumerate(keys[one])))}
        shared = [(first[key], index) for index, key in enumerate(keys[other]) if key in first]
        if shared:
            raise DataError(
                f"{where}: {len(shared)} of the {len(keys[other])} samples of {other} stand in {one} too, "
                f"the first pair: {other}[{shared[0][1]}] = {one}[{shared[0][0]}]",
                do=f"remove them from {one}: a result on samples that were seen before proves nothing",
            )


def _order(indices: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The samples so ordered that every stretch holds the classes in their shares.

    Each class is shuffled and its samples laid at even distances over 0..1; the order is by that place.
    """
    generator = np.random.default_rng(named_seed(seed, "data", "split"))
    shuffled = generator.permutation(indices)
    if labels.ndim != 1:
        return shuffled
    own = labels[shuffled]
    by_class = np.argsort(own, kind="stable")
    _, starts, counts = np.unique(own[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(own)) - np.repeat(starts, counts)
    place = np.empty(len(own))
    place[by_class] = (rank + 0.5) / np.repeat(counts, counts)
    return shuffled[np.argsort(place, kind="stable")]
