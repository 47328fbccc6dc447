"""Samples without labels, as the user gave them, into a split whose labels are all -1."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.tasks.samples import is_dataset, is_pair, read_split

NO_LABEL = -1


def read_unlabeled(given: Any, where: str, notes: list[str]) -> Split:
    """The samples in memory, checked as those of `read_split`; labels that stand beside them are not looked at.

    Args: given: inputs (an array, or a tuple of one array for each of three and more inputs of the model), a pair
        (inputs, anything), or a Dataset or DataLoader that gives either.
    Raises: DataError.
    """
    split = read_split(_labelled(given, where), where, notes)
    return Split(split.inputs, torch.full((len(split),), NO_LABEL))


def _labelled(given: Any, where: str) -> Any:
    """The same samples, each with the label 0, in a form that `read_split` reads."""
    if isinstance(given, DataLoader):
        if given.batch_size is None:
            raise DataError(f"{where}: a DataLoader without batches", do="return its Dataset itself")
        loader = copy.copy(given)
        loader.collate_fn = _of_batch(given.collate_fn)
        return loader
    if isinstance(given, IterableDataset):
        return _Stream(given)
    if isinstance(given, torch.Tensor | np.ndarray):
        return given, np.zeros(len(given) if given.ndim else 0, dtype=np.int64)
    if is_pair(given):
        inputs = given[0]
        several = isinstance(inputs, tuple | list) and len(inputs) > 0 and _is_array(inputs[0])
        first = inputs[0] if several else inputs
        if not hasattr(first, "__len__"):
            raise DataError(f"{where}: the inputs are {first!r}", do="return arrays with one row a sample")
        return inputs, np.zeros(len(first), dtype=np.int64)
    if isinstance(given, tuple) and given and all(map(_is_array, given)):
        return given, np.zeros(len(given[0]), dtype=np.int64)
    return _Samples(given) if is_dataset(given) else given


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0


def _of_sample(sample: Any) -> tuple[Any, int]:
    return (sample[0] if is_pair(sample) else sample), 0


def _of_batch(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def labelled(samples: Any) -> Any:
        batch = collate(samples)
        inputs = batch[0] if is_pair(batch) else batch
        return inputs, torch.zeros(len(samples), dtype=torch.int64)

    labelled.__wrapped__ = collate  # type: ignore[attr-defined]
    return labelled


class _Samples(Dataset[Any]):
    def __init__(self, inner: Any) -> None:
        self.inner = self.__wrapped__ = inner  # by that name an error is blamed on the user's line

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return _of_sample(self.inner[index])


class _Stream(IterableDataset[Any]):
    def __init__(self, inner: Any) -> None:
        self.inner = self.__wrapped__ = inner

    def __iter__(self) -> Iterator[Any]:
        yield from map(_of_sample, self.inner)
