"""The user's data into four splits in memory, and an unlabeled one: checked, completed, with their bytes' fingerprint."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from kdc.core.data import Split, Splits
from kdc.core.errors import DataError
from kdc.core.spec import TensorSpec
from kdc.core.usercode import call
from kdc.tasks.samples import is_dataset, is_pair, read_split
from kdc.tasks.splitting import complete, refuse_leaks
from kdc.tasks.unlabeled import read_unlabeled

NAMES = ("train", "calibration", "validation", "test")
UNLABELED = "unlabeled"
AUGMENT = "augment"
_SEED = 20  # of the trial of the user's augmentation


@dataclass(frozen=True)
class Given:
    """What the user's callable returned, read: some of the splits, `unlabeled` among them where it is there.

    `augment_source`: the fingerprint of the augmentation's source. `where`: how messages call the callable.
    """

    splits: Mapping[str, Split]
    where: str
    notes: tuple[str, ...] = ()
    augment: Any = None
    augment_source: str = ""

    @property
    def seen(self) -> Split | None:
        """A split that shows what the samples are like; None where there is none."""
        return next(iter(self.splits.values()), None)

    def with_train(self, train: Split, notes: tuple[str, ...]) -> Given:
        """The same with a training split that the user did not give."""
        return replace(self, splits={"train": train, **self.splits}, notes=(*self.notes, *notes))


def load_splits(loaded: object, seed: int, where: str, augment_source: str = "") -> Splits:
    """What the user's callable returned, as four splits in memory, and the unlabeled one where there is one.

    Args: loaded: a mapping of split names to pairs, Datasets or DataLoaders, and optionally "unlabeled" and "augment";
        or one of those alone, which is then the training split. seed: of the samples that are split off for missing
        splits. where: how messages call it. augment_source: the fingerprint of the augmentation's source.
    Raises: DataError that names the split, what was found and what to do.
    """
    return completed(read_given(loaded, where, augment_source), seed)


def read_given(loaded: object, where: str, augment_source: str = "", *, train: bool = True) -> Given:
    """What the user's callable returned, each split read and checked. Arguments and errors as of `load_splits`.

    Args: train: whether the training split must be there; False: it must not, for it is synthesised.
    """
    given = _named(loaded, where, train)
    augment = given.pop(AUGMENT, None)
    notes: list[str] = []
    read = {name: read_split(given[name], f"{where}: {name}", notes) for name in NAMES if name in given}
    if UNLABELED in given:
        read[UNLABELED] = read_unlabeled(given[UNLABELED], f"{where}: {UNLABELED}", notes)
    return Given(read, where, tuple(notes), augment, augment_source)


def completed(given: Given, seed: int) -> Splits:
    """The four splits with those that are missing split off the training split, which must be there by now.

    Raises: DataError where splits are unlike, share samples, or the augmentation is no fair one.
    """
    where, notes = given.where, list(given.notes)
    unlabeled = given.splits.get(UNLABELED)
    read = {name: split for name, split in given.splits.items() if name != UNLABELED}
    check_alike(given, read["train"])
    splits = complete(read, seed, where, notes)
    everything = splits if unlabeled is None else {**splits, UNLABELED: unlabeled}
    refuse_leaks(everything, where)
    if given.augment is not None:
        _check_augment(given.augment, splits["train"], f"{where}: {AUGMENT}")
    fingerprint = _fingerprint(everything, given.augment_source if given.augment is not None else "")
    return Splits(**splits, fingerprint=fingerprint, augment=given.augment, notes=tuple(notes), unlabeled=unlabeled)


def check_alike(given: Given, train: Split) -> None:
    """Raises: DataError where a split's inputs or labels are not of the training split's form."""
    for name, split in given.splits.items():
        _check_alike(split, name, train, given.where)


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


def _named(loaded: object, where: str, train: bool) -> dict[str, Any]:
    """The user's mapping with only known keys; something else that can be read is the training split."""
    if not isinstance(loaded, Mapping):
        if is_pair(loaded) or is_dataset(loaded) or isinstance(loaded, DataLoader | IterableDataset):
            if not train:
                raise _unasked(where)
            return {"train": loaded}
        kind = "nothing" if loaded is None else f"a {type(loaded).__name__}"
        raise DataError(
            f"{where} returned {kind}; expected a mapping with the keys {', '.join((*NAMES, UNLABELED))}, {AUGMENT}",
            do='return {"train": (inputs, labels), "test": (inputs, labels)}; see docs/bring-your-own.md',
        )
    known = [*NAMES, UNLABELED, AUGMENT]
    for key in loaded:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1, cutoff=0.3)
            raise DataError(
                f"{where} returned the unknown key {key!r}; expected {', '.join(known)}",
                do=f"did you mean {close[0]!r}?" if close else "leave it out",
            )
    given = {str(key): value for key, value in loaded.items() if value is not None}
    if not train and "train" in given:
        raise _unasked(where)
    if train and "train" not in given:
        raise DataError(
            f"{where} returned {', '.join(given) or 'no splits'}; expected at least train",
            do="return the training split under the key 'train', or let it be made from the teacher: data.synthesise",
        )
    return given


def _unasked(where: str) -> DataError:
    return DataError(
        f"{where} returned a training split, and the recipe's data.synthesise asks for a synthetic one",
        do="take `synthesise` out of the recipe, or return no training split",
    )


def _check_alike(split: Split, name: str, train: Split, where: str) -> None:
    def form(one: Split) -> list[str]:
        inputs = [
            f"{str(t.dtype).removeprefix('torch.')}[n{''.join(f', {s}' for s in t.shape[1:])}]" for t in one.inputs
        ]
        if name == UNLABELED:
            return inputs
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
    for name in (*NAMES, *([UNLABELED] if UNLABELED in splits else [])):
        for part in (*splits[name].inputs, splits[name].labels):
            array = part.contiguous()
            sha.update(f"{name} {array.dtype} {tuple(array.shape)}\0".encode())
            sha.update(array.reshape(-1).view(torch.uint8).numpy().data)
    sha.update(augment_source.encode())
    return sha.hexdigest()
