"""The data as values: samples in memory, in four splits and perhaps an unlabeled one, with their bytes' fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Split:
    """Samples: one tensor [n, ...] for each of the model's inputs, in call order, and labels [n, ...]."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: torch.Tensor | slice) -> Split:
        return Split(tuple(tensor[index] for tensor in self.inputs), self.labels[index])

    def batches(self, size: int) -> Iterator[Split]:
        """The samples in their order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass(frozen=True)
class Splits:
    """The four splits, and samples without labels where the user has some.

    `augment` changes training inputs (first input only) and never labels; None: no augmentation. `fingerprint` is the
    SHA-256 of every split's bytes, and of the augmentation's source. `notes` say what was done to the user's data on
    the way in (splits that were made, for one). `unlabeled`: collected samples, some of which may be of no class that
    the model knows; its labels are all -1.
    """

    train: Split
    calibration: Split
    validation: Split
    test: Split
    fingerprint: str
    augment: Augment | None = None
    notes: tuple[str, ...] = ()
    unlabeled: Split | None = None

    def digest(self) -> str:
        """SHA-256 of the samples as they are in memory now."""
        sha = hashlib.sha256()
        for split in (self.train, self.calibration, self.validation, self.test, self.unlabeled):
            for tensor in () if split is None else (*split.inputs, split.labels):
                sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()
