"""The user's data into four splits in memory: checked, completed, with the fingerprint of their bytes."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from kdc.core.data import Split, Splits
from kdc.core.errors import DataError
from kdc.core.spec import TensorSpec
from kdc.core.usercode import call
from kdc.tasks.samples import is_dataset, is_pair, read_split
from kdc.tasks.splitting import complete, refuse_leaks

NAMES = ("train", "calibration", "validation", "test")
AUGMENT = "augment"
_SEED = 20  # of the trial of the user's augmentation


def load_splits(loaded: object, seed: int, where: str, augment_source: str = "") -> Splits:
    """What the user's callable returned, as four splits in memory.

    Args: loaded: a mapping of split names to pairs, Datasets or DataLoaders, and optionally "augment"; or one of those
        alone, which is then the training split. seed: of the samples that are split off for missing splits.
        where: how messages call it. augment_source: the fingerprint of the augmentation's source.
    Raises: DataError that names the split, what was found and what to do.
    """
    given = _named(loaded, where)
    augment = given.pop(AUGMENT, None)
    notes: list[str] = []
    read = {name: read_split(given[name], f"{where}: {name}", notes) for name in NAMES if name in given}
    for name, split in read.items():
        _check_alike(split, name, read["train"], where)
    splits = complete(read, seed, where, notes)
    refuse_leaks(splits, where)
    if augment is not None:
        _check_augment(augment, splits["train"], f"{where}: {AUGMENT}")
    fingerprint = _fingerprint(splits, augment_source if augment is not None else "")
    return Splits(**splits, fingerprint=fingerprint, augment=augment, notes=tuple(notes))


def input_specs(split: Split, names: Sequence[str] | None = None) -> tuple[TensorSpec, ...]:
    """What a model takes that is fed these samples, for any batch size.

    `names` are those of the model's forward parameters, in order; what it has more of than the data has its defaults.
    """
    count = len(split.inputs)
    if names is None or len(names) < count:
        names = ["input"] if count == 1 else [f"input_{number}" for number in range(count)]
    return tuple(
        TensorSpec(name=name, shape=("batch", *tensor.shape[1:]), dtype=str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, split.inputs, strict=False)
    )


def _named(loaded: object, where: str) -> dict[str, Any]:
    """The user's mapping with only known keys; something else that can be read is the training split."""
    if not isinstance(loaded, Mapping):
        if is_pair(loaded) or is_dataset(loaded) or isinstance(loaded, DataLoader | IterableDataset):
            return {"train": loaded}
        kind = "nothing" if loaded is None else f"a {type(loaded).__name__}"
        raise DataError(
            f"{where} returned {kind}; expected a mapping with the keys {', '.join(NAMES)}, {AUGMENT}",
            do='return {"train": (inputs, labels), "test": (inputs, labels)}; see docs/bring-your-own.md',
        )
    known = [*NAMES, AUGMENT]
    for key in loaded:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1, cutoff=0.3)
            raise DataError(
                f"{where} returned the unknown key {key!r}; expected {', '.join(known)}",
                do=f"did you mean {close[0]!r}?" if close else "leave it out",
            )
    given = {str(key): value for key, value in loaded.items() if value is not None}
    if "train" not in given:
        raise DataError(
            f"{where} returned {', '.join(given) or 'no splits'}; expected at least train",
            do="return the training split under the key 'train'",
        )
    return given


def _check_alike(split: Split, name: str, train: Split, where: str) -> None:
    def form(one: Split) -> list[str]:
        inputs = [
            f"{str(t.dtype).removeprefix('torch.')}[n{''.join(f', {s}' for s in t.shape[1:])}]" for t in one.inputs
        ]
        return [*inputs, f"labels[n{''.join(f', {size}' for size in one.labels.shape[1:])}]"]

    if form(split) != form(train):
        raise DataError(
            f"{where}: {name} holds {', '.join(form(split))}; train holds {', '.join(form(train))}",
            do="give every split the same inputs, shapes and number types",
        )


def _check_augment(augment: Any, train: Split, where: str) -> None:
    """It must keep shape and type, leave its input alone, and draw only from the generator that it is given."""
    if not callable(augment):
        raise DataError(
            f"{where} is a {type(augment).__name__}; expected a callable",
            do="return augment(images, generator) -> images",
        )
    images = train.inputs[0][:8]
    kept = images.clone()
    once, again = (call(augment, (images, torch.Generator().manual_seed(_SEED)), where, DataError) for _ in range(2))
    if not isinstance(once, torch.Tensor) or once.shape != kept.shape or once.dtype != kept.dtype:
        found = f"{once.dtype} {list(once.shape)}" if isinstance(once, torch.Tensor) else f"a {type(once).__name__}"
        raise DataError(
            f"{where}: given {kept.dtype} {list(kept.shape)} it returned {found}; expected the same type and shape",
            do="return a tensor like the one that came in",
        )
    if not torch.equal(images, kept):
        raise DataError(f"{where} changes its input in place", do="work on a copy: images = images.clone()")
    if not torch.equal(once, again):
        raise DataError(
            f"{where}: two calls with equal generators gave different images",
            do="draw every random number from the generator: torch.rand(..., generator=generator)",
        )


def _fingerprint(splits: Mapping[str, Split], augment_source: str) -> str:
    sha = hashlib.sha256()
    for name in NAMES:
        for part in (*splits[name].inputs, splits[name].labels):
            array = part.contiguous()
            sha.update(f"{name} {array.dtype} {tuple(array.shape)}\0".encode())
            sha.update(array.reshape(-1).view(torch.uint8).numpy().data)
    sha.update(augment_source.encode())
    return sha.hexdigest()
