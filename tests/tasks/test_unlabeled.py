"""Samples without labels: every form that is read, what they may not share, and the fingerprint."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from data_forms import NAMES, Samples, Stream, four, load, pair, refused
from torch.utils.data import DataLoader, TensorDataset

from kdc.core.errors import DataError

IMAGES = pair(24, seed=9)[0]


def forms() -> dict[str, Callable[[np.ndarray], Any]]:
    tensors = torch.from_numpy
    return {
        "an array": lambda x: x,
        "a tensor": tensors,
        "a pair with labels": lambda x: (x, np.arange(len(x))),
        "a pair with labels that are none": lambda x: (x, [None] * len(x)),
        "a pair with nothing": lambda x: (tensors(x), None),
        "a dataset of samples": lambda x: Samples(len(x), lambda i: x[i]),
        "a dataset of pairs": lambda x: Samples(len(x), lambda i: (x[i], "who knows")),
        "a list of samples": lambda x: [x[i] for i in range(len(x))],
        "a loader of pairs": lambda x: DataLoader(TensorDataset(tensors(x), torch.ones(len(x))), batch_size=7),
        "a loader of samples": lambda x: DataLoader(Samples(len(x), lambda i: x[i]), batch_size=7, shuffle=True),
        "a stream": lambda x: Stream(x, x),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_gives_the_same_samples_without_labels(form: str):
    splits = load(four(unlabeled=forms()[form](IMAGES)))
    assert splits.unlabeled is not None
    assert np.array_equal(splits.unlabeled.inputs[0].numpy(), IMAGES)
    assert splits.unlabeled.labels.tolist() == [-1] * len(IMAGES)
    assert splits.fingerprint == load(four(unlabeled=IMAGES)).fingerprint


def test_several_inputs_are_a_tuple_in_a_pair_or_three_and_more_alone():
    def triple(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return x, 2 * x, 3 * x

    data: dict[str, Any] = {name: (triple(pair(seed=seed)[0]), pair()[1]) for seed, name in enumerate(NAMES)}
    for given in (triple(IMAGES), (triple(IMAGES), None)):
        found = load({**data, "unlabeled": given}).unlabeled
        assert found is not None
        assert [float(tensor.sum() / found.inputs[0].sum()) for tensor in found.inputs] == pytest.approx([1, 2, 3])


def fingerprint_by_hand(given: dict[str, Any]) -> str:
    sha = hashlib.sha256()
    for name in NAMES:
        images, labels = given[name]
        for array, kind in ((images, "torch.float32"), (labels.astype(np.int64), "torch.int64")):
            sha.update(f"{name} {kind} {array.shape}\0".encode() + array.tobytes())
    return sha.hexdigest()


def test_the_fingerprint_is_of_the_unlabeled_samples_too_and_without_them_what_it_was():
    assert load(four()).fingerprint == fingerprint_by_hand(four())
    assert load(four()).unlabeled is None
    with_them = load(four(unlabeled=IMAGES)).fingerprint
    changed = IMAGES.copy()
    changed[3, 0, 1, 1] += 1
    assert len({with_them, load(four(unlabeled=changed)).fingerprint, load(four()).fingerprint}) == 3


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_sample_that_is_judged_on_may_not_be_among_the_unlabeled(name: str):
    seen = four()[name][0]
    shared = np.concatenate([IMAGES, seen[5:7]])
    refused(four(unlabeled=shared), f"2 of the 40 samples of {name} stand in unlabeled", "remove them from unlabeled")


def test_training_samples_may_be_among_the_unlabeled():
    assert load(four(unlabeled=four()["train"][0])).unlabeled is not None


def broken(index: int) -> Any:
    raise RuntimeError(f"no sample {index}")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (pair(shape=(1, 5, 5))[0], ("unlabeled holds float32[n, 1, 5, 5]", "train holds float32[n, 1, 4, 4]")),
        (np.full((3, 1, 4, 4), np.nan, np.float32), ("unlabeled: 3 of 3 samples hold NaN",)),
        (np.empty((0, 1, 4, 4), np.float32), ("unlabeled is empty",)),
        (7, ("unlabeled is a int",)),
        ((7, None), ("unlabeled: the inputs are 7",)),
        (np.float32(3), ("unlabeled",)),
        (DataLoader(Samples(4, lambda i: IMAGES[i]), batch_size=None), ("unlabeled: a DataLoader without batches",)),
    ],
    ids=["shape", "nan", "empty", "number", "pair of a number", "scalar", "loader"],
)
def test_what_cannot_be_read_is_refused_by_name(given: Any, parts: tuple[str, ...]):
    refused(four(unlabeled=given), *parts)


def test_a_dataset_that_raises_is_blamed_on_the_file_of_its_class():
    with pytest.raises(DataError, match=r"unlabeled raised at .*data_forms\.py:\d+: RuntimeError: no sample 0"):
        load(four(unlabeled=Samples(4, broken)))


def test_a_misspelt_key_is_told_with_the_one_that_was_meant():
    refused(four(unlabelled=IMAGES), "unknown key 'unlabelled'", "did you mean 'unlabeled'?")
