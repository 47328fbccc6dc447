"""One split as the user gave it (arrays, a Dataset, a DataLoader) into tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data import SubsetRandomSampler as SubsetSampler

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.core.usercode import blamed, file_of

MEMORY_SHARE = 0.6  # of what is free: training needs the rest
PROBES = 64  # samples read twice; a flip half of the time stays unseen once in 2^64
_DO_STACK = "give samples of one shape: resize or pad them in the data code"
_FORMS = "a pair (inputs, labels) of arrays or tensors, a torch Dataset, or a DataLoader"

Batch = tuple[tuple[Tensor, ...], Tensor]


def read_split(given: Any, where: str, notes: list[str]) -> Split:
    """The samples in memory, checked; what was changed is added to `notes`.

    Args: given: a pair, a Dataset or a DataLoader. where: how errors and notes call the split.
    Returns: inputs as given, but float64 as float32; labels int64 from 0 on.
    Raises: DataError.
    """
    if isinstance(given, DataLoader):
        inputs, labels = _read_loader(given, where, notes)
    elif isinstance(given, IterableDataset):
        inputs, labels = _read_stream(_blamed(given, iter(given), where), where, batched=False)
    elif is_pair(given):
        inputs, labels = _read_pair(given, where)
    elif is_dataset(given):
        inputs, labels = _read_map(len(given), 1, _getter(given, None, where), where)
    else:
        raise DataError(f"{where} is {_named(given)}; expected {_FORMS}", do="see docs/bring-your-own.md")
    _check_lengths(inputs, labels, where)
    inputs = tuple(_as_float32(tensor, where, notes) for tensor in inputs)
    for number, tensor in enumerate(inputs):
        _check_finite(tensor, f"{where}, input {number}" if len(inputs) > 1 else where)
    return Split(inputs, _integer_labels(labels, where, notes))


def is_pair(given: Any) -> bool:
    """Whether this is (inputs, labels), and no split of another kind."""
    return isinstance(given, tuple | list) and len(given) == 2


def is_dataset(given: Any) -> bool:
    """Whether this can be read by index, as torch's map-style datasets are (a list of samples too)."""
    known = not isinstance(given, Mapping | str | bytes | np.ndarray | Tensor)
    return known and hasattr(given, "__getitem__") and hasattr(given, "__len__")


def _read_pair(given: Any, where: str) -> Batch:
    inputs, labels = given
    several = _several(inputs)
    tensors = tuple(_tensor(part, where) for part in inputs) if several else (_tensor(inputs, where),)
    labels = _tensor(labels, f"{where}, labels")
    if any(not tensor.ndim for tensor in (*tensors, labels)):
        raise DataError(f"{where}: found a single number; expected arrays with one row a sample", do="return arrays")
    if several and len(inputs) == len(labels) and any(len(tensor) != len(labels) for tensor in tensors):
        raise DataError(
            f"{where}: a list of {len(inputs)} arrays; a list means one array for each input of the model",
            do="stack the samples into one array: numpy.stack(inputs)",
        )
    return tensors, labels


def _read_loader(loader: DataLoader[Any], where: str, notes: list[str]) -> Batch:
    """The loader's dataset through its collate_fn, in the dataset's order; its workers and shuffling are not used."""
    if isinstance(loader.dataset, IterableDataset):
        stream: DataLoader[Any] = DataLoader(  # without workers, each of which would give every sample again
            loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, generator=torch.Generator()
        )
        return _read_stream(_blamed(loader.dataset, iter(stream), where), where, batched=loader.batch_size is not None)
    dataset: Any = loader.dataset
    batch_sampler: Any = loader.batch_sampler
    sampler: Any = loader.sampler if batch_sampler is None else getattr(batch_sampler, "sampler", None)
    own = (BatchSampler, type(None))
    whole = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if type(batch_sampler) not in own or not (whole or type(sampler) is SubsetSampler):
        name = type(sampler if type(batch_sampler) in own else batch_sampler).__name__
        raise DataError(
            f"{where}: a DataLoader whose {name} chooses the samples; expected one that reads the whole dataset",
            do="return the Dataset itself, or torch.utils.data.Subset of it",
        )
    if type(sampler) is SubsetSampler:
        dataset = torch.utils.data.Subset(dataset, sorted(int(index) for index in sampler.indices))
    if type(sampler) is not SequentialSampler:
        notes.append(f"{where}: the DataLoader's shuffling is not used; kdc draws its own order by the seed")
    if len(dataset) and loader.batch_size is None:
        return _read_map(len(dataset), 1, _getter(dataset, None, where), where)
    return _read_map(len(dataset), loader.batch_size or 1, _getter(dataset, loader.collate_fn, where), where)


def _getter(dataset: Any, collate: Callable[[Any], Any] | None, where: str) -> Callable[[range], Batch]:
    """Reads samples by their indices into one batch."""

    def read(indices: range) -> Batch:
        with blamed(where, DataError, file_of(dataset)):
            samples = [dataset[index] for index in indices]
        if collate is None:
            place = f"{where}, sample {indices[0]}"
            return _batch(_pair_of(samples[0], place), place, add_axis=True)
        with blamed(f"{where}, collate_fn", DataError, file_of(collate)):
            collated = collate(samples)
        place = f"{where}, batch of samples from {indices[0]} on"
        return _batch(_pair_of(collated, place), place, add_axis=False)

    return read


def _read_map(count: int, size: int, read: Callable[[range], Batch], where: str) -> Batch:
    if not count:
        return (torch.empty(0),), torch.empty(0)
    first_inputs, first_labels = read(range(1))
    parts = [*first_inputs, first_labels]
    _check_memory(count * sum(part.nbytes for part in parts), where)
    whole = [part.new_empty((count, *part.shape[1:])) for part in parts]
    for start in range(0, count, size):
        chunk = range(start, min(start + size, count))
        inputs, labels = read(chunk)
        for target, part in zip(whole, [*inputs, labels], strict=False):
            _check_like(part, target, len(chunk), f"{where}, sample {start}")
            target[start : start + len(chunk)] = part
        if len(inputs) != len(first_inputs):
            raise DataError(f"{where}, sample {start}: {len(inputs)} inputs; sample 0 has {len(first_inputs)}")
    for index in range(0, count, max(1, count // PROBES)):
        again, _ = read(range(index, index + 1))
        if any(_bytes(a[0]) != _bytes(b[index]) for a, b in zip(again, whole[:-1], strict=True)):
            raise DataError(
                f"{where}: sample {index} differs from one read to the next; expected the same sample each time",
                do='take the random augmentation out of the Dataset and return it under the key "augment": '
                "augment(images, generator) -> images",
            )
    return tuple(whole[:-1]), whole[-1]


def _read_stream(samples: Iterable[Any], where: str, *, batched: bool) -> Batch:
    """Everything that an iterable gives, once: (x, y) samples, or batches of them."""
    columns: list[list[Tensor]] = []
    held = 0
    for number, sample in enumerate(samples):
        place = f"{where}, {'batch' if batched else 'sample'} {number}"
        inputs, labels = _batch(_pair_of(sample, place), place, add_axis=not batched)
        parts = [*inputs, labels]
        columns = columns or [[] for _ in parts]
        held += sum(part.nbytes for part in parts)
        _check_memory(2 * held if number % 1024 == 0 else 0, where)  # the list, and then the tensor made of it
        for column, part in zip(columns, parts, strict=False):
            _check_like(part, (column or [part])[0], len(part), place)
            column.append(part)
    if not columns:
        return (torch.empty(0),), torch.empty(0)
    whole = [torch.cat(column) for column in columns]
    return tuple(whole[:-1]), whole[-1]


def _blamed(dataset: Any, samples: Iterator[Any], where: str) -> Iterator[Any]:
    with blamed(where, DataError, file_of(dataset)):
        yield from samples


def _pair_of(sample: Any, where: str) -> tuple[Any, Any]:
    if not is_pair(sample):
        size = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
        raise DataError(
            f"{where} is {_named(sample)}{size}; expected (x, y), or ((x1, x2), y) for a model with two inputs",
            do="return such a pair from the Dataset's __getitem__",
        )
    return sample[0], sample[1]


def _batch(pair: tuple[Any, Any], where: str, *, add_axis: bool) -> Batch:
    x, y = pair
    parts = [_tensor(part, where) for part in ([*x] if _several(x) else [x])]
    labels = _tensor(y, f"{where}, labels")
    if add_axis:
        return tuple(part[None] for part in parts), labels[None]
    return tuple(parts), labels


def _several(inputs: Any) -> bool:
    """A tuple or list of arrays stands for several inputs; one of numbers is itself an array."""
    return (
        isinstance(inputs, tuple | list)
        and len(inputs) > 0
        and all(isinstance(part, Tensor | np.ndarray) and part.ndim > 0 for part in inputs)
    )


def _tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    plain = isinstance(value, int | float | list | tuple | np.generic)
    if not plain and (not hasattr(value, "__array__") or hasattr(value, "getbands")):  # an image of PIL has bands
        raise DataError(
            f"{where}: found {_named(value)}; expected an array or a tensor", do="convert it in the data code"
        )
    if isinstance(value, np.memmap):
        _check_memory(value.nbytes, where)
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{where}: rows of different shapes: {error}", do=_DO_STACK) from error
    if array.dtype.kind not in "buif":
        raise DataError(f"{where}: an array of {array.dtype}; expected numbers", do="convert it in the data code")
    array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable or isinstance(value, np.memmap))
    return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)  # numpy makes [1] of a lone number


def _as_float32(tensor: Tensor, where: str, notes: list[str]) -> Tensor:
    if tensor.dtype != torch.float64:
        return tensor
    _check_memory(tensor.nbytes // 2, where)
    notes.append(f"{where}: inputs converted from float64 to float32")
    return tensor.float()


def _integer_labels(labels: Tensor, where: str, notes: list[str]) -> Tensor:
    """Class numbers from 0 on: whole floats and one-hot rows are read as what they mean."""
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.is_floating_point():
        odd = (labels != labels.round()) | ~torch.isfinite(labels)
        if odd.any():
            at = _first(odd)
            raise DataError(
                f"{where}: {int(odd.sum())} labels are not whole numbers, the first at sample {at}: "
                f"{labels[at].tolist()}; expected class numbers 0, 1, 2, ...",
                do="return class numbers (of probabilities: labels.argmax(1))",
            )
    labels = labels.to(torch.int64)
    if labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all()):
        notes.append(f"{where}: one-hot labels converted to class numbers")
        labels = labels.argmax(1)
    negative = labels < 0
    if negative.any():
        at = _first(negative)
        raise DataError(
            f"{where}: {int(negative.sum())} labels are negative, the first at sample {at}: {labels[at].tolist()}; "
            "expected class numbers from 0 on",
            do="number the classes from 0, and leave out samples without a class",
        )
    return labels


def _check_lengths(inputs: tuple[Tensor, ...], labels: Tensor, where: str) -> None:
    lengths = [len(tensor) for tensor in inputs]
    if any(length != len(labels) for length in lengths):
        found = " and ".join(str(length) for length in lengths)
        raise DataError(f"{where}: {found} inputs and {len(labels)} labels", do="return one label for each sample")
    if not len(labels) or any(not tensor.numel() for tensor in inputs):
        raise DataError(f"{where} is empty; expected at least one sample", do="return samples, or leave the split out")


def _check_finite(tensor: Tensor, where: str) -> None:
    if tensor.is_floating_point():
        bad = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
        if bad.any():
            raise DataError(
                f"{where}: {int(bad.sum())} of {len(tensor)} samples hold NaN or infinite values, the first at index "
                f"{_first(bad)}",
                do="mend or leave out those samples in the data code",
            )


def _check_like(part: Tensor, target: Tensor, count: int, where: str) -> None:
    if len(part) != count or part.shape[1:] != target.shape[1:] or part.dtype != target.dtype:
        raise DataError(
            f"{where}: found {part.dtype} of shape {list(part.shape)}; "
            f"expected {target.dtype} of shape {[count, *target.shape[1:]]}, as before it",
            do=_DO_STACK,
        )


def _check_memory(needed: int, where: str) -> None:
    available = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * available:
        raise DataError(
            f"{where} would take {needed / 1e9:.1f} GB of memory; {available / 1e9:.1f} GB are free, and at most "
            f"{MEMORY_SHARE:.0%} of them may be taken",
            do="return fewer or smaller samples (images as uint8), or use a machine with more memory",
        )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _first(mask: Tensor) -> int:
    return int(mask.reshape(len(mask), -1).any(1).nonzero()[0])


def _named(value: Any) -> str:
    kind = type(value)
    return "None" if value is None else f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
