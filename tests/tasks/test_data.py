"""The user's data: every form that is read, every split that is made, and the fingerprint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_forms import NAMES, Samples, Stream, four, load, pair, refused
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, TensorDataset

from kdc.core.data import Splits
from kdc.core.errors import DataError
from kdc.core.usercode import call, load_callable
from kdc.tasks.data import input_specs, load_splits


def same(splits: Splits, images: np.ndarray, labels: np.ndarray) -> bool:
    train = splits.train
    return np.array_equal(train.inputs[0].numpy(), images) and np.array_equal(train.labels.numpy(), labels)


# the forms that are read


def forms() -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    tensors = torch.from_numpy
    return {
        "arrays": lambda x, y: (x, y),
        "tensors": lambda x, y: [tensors(x), tensors(y).int()],
        "labels in a list": lambda x, y: (x, y.tolist()),
        "whole float labels": lambda x, y: (x, y.astype(float)),
        "labels as a column": lambda x, y: (x, y[:, None]),
        "read-only arrays": lambda x, y: (np.frombuffer(x.tobytes(), np.float32).reshape(x.shape), y),
        "big-endian arrays": lambda x, y: (x.astype(">f4"), y.astype(">i2")),
        "reversed views": lambda x, y: (x[::-1].copy()[::-1], y),
        "a dataset": lambda x, y: TensorDataset(tensors(x), tensors(y)),
        "a dataset of numpy and int": lambda x, y: Samples(len(x), lambda i: (x[i], int(y[i]))),
        "a list of samples": lambda x, y: [(x[i], y[i]) for i in range(len(x))],
        "a loader": lambda x, y: DataLoader(TensorDataset(tensors(x), tensors(y)), batch_size=7),
        "a loader without batches": lambda x, y: DataLoader(TensorDataset(tensors(x), tensors(y)), batch_size=None),
        "a shuffling loader": lambda x, y: DataLoader(
            TensorDataset(tensors(x), tensors(y)), batch_size=7, shuffle=True
        ),
        "a loader that drops the last": lambda x, y: DataLoader(
            TensorDataset(tensors(x), tensors(y)), 7, drop_last=True
        ),
        "a stream": Stream,
        "a loader of a stream": lambda x, y: DataLoader(Stream(x, y), batch_size=7, num_workers=2),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_gives_the_same_samples_in_the_same_order(form: str):
    images, labels = pair()
    splits = load(four(train=forms()[form](images, labels)))
    assert same(splits, images, labels)
    assert splits.train.labels.dtype == torch.int64
    assert splits.fingerprint == load(four()).fingerprint


def test_reading_draws_nothing_from_the_global_generator():
    images, labels = pair()
    state = torch.random.get_rng_state()
    for form in ("a shuffling loader", "a loader of a stream", "a dataset"):
        load(forms()[form](images, labels))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loaders_collate_fn_is_used_and_its_shuffling_is_noted():
    images, labels = pair()

    def collate(samples: list[Any]) -> Any:
        return torch.stack([2 * x for x, _ in samples]), torch.stack([y for _, y in samples])

    dataset = TensorDataset(*map(torch.from_numpy, (images, labels)))
    splits = load(four(train=DataLoader(dataset, 6, shuffle=True, collate_fn=collate)))
    assert same(splits, 2 * images, labels)
    assert any("shuffling is not used" in note for note in splits.notes)


def test_a_loader_of_a_subset_gives_only_that_subset():
    images, labels = pair()
    dataset = TensorDataset(*map(torch.from_numpy, (images, labels)))
    chosen = [5, 2, 30]
    by_sampler = load(four(train=DataLoader(dataset, 2, sampler=SubsetRandomSampler(chosen))))
    assert same(by_sampler, images[sorted(chosen)], labels[sorted(chosen)])
    assert same(load(four(train=DataLoader(Subset(dataset, chosen), 2))), images[chosen], labels[chosen])


def test_a_stream_is_read_once():
    stream = Stream(*pair())
    load(four(train=stream))
    assert stream.reads == 1


@pytest.mark.parametrize("dataset", [False, True])
def test_models_with_two_inputs_get_two_tensors(dataset: bool):
    def two(seed: int) -> Any:
        first, labels = pair(seed=seed)
        second = np.full((40, 3), seed, np.int64)
        return Samples(40, lambda i: ((first[i], second[i]), labels[i])) if dataset else ((first, second), labels)

    splits = load({name: two(seed) for seed, name in enumerate(NAMES)})
    assert [tuple(t.shape) for t in splits.test.inputs] == [(40, 1, 4, 4), (40, 3)]
    assert [spec.dtype for spec in input_specs(splits.train)] == ["float32", "int64"]


def test_float64_becomes_float32_and_is_noted_and_uint8_stays():
    images, labels = pair()
    splits = load({"train": (images.astype(np.float64), labels)})
    assert splits.train.inputs[0].dtype == torch.float32
    assert any("float64 to float32" in note for note in splits.notes)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), np.uint8)
    assert load((pixels, labels)).train.inputs[0].dtype == torch.uint8


def test_one_hot_labels_become_class_numbers_and_are_noted():
    images, labels = pair()
    splits = load(four(train=(images, np.eye(4)[labels])))
    assert same(splits, images, labels)
    assert any("one-hot" in note for note in splits.notes)


def test_changing_the_users_arrays_afterwards_does_not_reach_a_read_only_copy():
    images, labels = pair()
    images.flags.writeable = False
    assert same(load(four(train=(images, labels))), images, labels)


def test_the_specs_have_a_free_batch_and_the_names_of_forward():
    split = load(four()).train
    (spec,) = input_specs(split, ["image", "unused"])
    assert (spec.name, spec.shape, spec.dtype) == ("image", ("batch", 1, 4, 4), "float32")
    assert [spec.name for spec in input_specs(split)] == ["input"]


# the splits that are made


@pytest.mark.parametrize("alone", [True, False])
def test_missing_splits_come_from_train_in_their_shares_and_are_noted(alone: bool):
    images, labels = pair(1000)
    splits = load((images, labels) if alone else {"train": (images, labels)})
    assert [len(getattr(splits, name)) for name in NAMES] == [700, 50, 100, 150]
    assert [sum(f"no {name} split" in note for note in splits.notes) for name in NAMES] == [0, 1, 1, 1]
    rows = torch.cat([getattr(splits, name).inputs[0] for name in NAMES]).flatten(1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, images.reshape(1000, -1).tolist()))


def test_only_what_is_missing_is_split_off():
    given = {"train": pair(200), "test": pair(30, seed=5), "validation": pair(20, seed=6)}
    splits = load(given)
    assert [len(getattr(splits, name)) for name in NAMES] == [190, 10, 20, 30]
    assert len(splits.notes) == 1


def test_calibration_takes_at_most_512_samples():
    splits = load(pair(12_000, shape=(2,)))
    assert len(splits.calibration) == 512


def test_made_splits_hold_the_classes_in_their_shares():
    images, _ = pair(1000)
    labels = np.repeat([0, 1, 2], [700, 280, 20])
    splits = load((images, labels))
    assert splits.test.labels.bincount().tolist() == [105, 42, 3]
    assert splits.validation.labels.bincount().tolist() == [70, 28, 2]


def test_the_seed_decides_which_samples_are_split_off():
    given = pair(200)
    assert load(given, seed=1).fingerprint == load(given, seed=1).fingerprint
    assert load(given, seed=1).fingerprint != load(given, seed=2).fingerprint
    assert load(four(), seed=1).fingerprint == load(four(), seed=2).fingerprint  # nothing was split off


def test_copies_within_train_stay_on_one_side_and_are_noted():
    images, labels = pair(200)
    images[100:] = images[:100]
    images[0] = 7  # one of its own
    splits = load((np.concatenate([images, pair(200, 9)[0]]), np.tile(labels, 2)))
    assert any("198 samples of train have an exact copy" in note for note in splits.notes)
    assert [len(getattr(splits, name)) for name in NAMES] == [280, 20, 40, 60]


def test_too_few_samples_to_split_are_refused():
    refused(pair(3), "the training split has 3 different samples, too few to split off", "1 for test", "more samples")


# the fingerprint


def test_the_fingerprint_covers_every_byte_dtype_and_the_augmentations_source():
    def keep(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images

    whole = load(four()).fingerprint
    changed_image, changed_label = pair(seed=3), pair(seed=3)
    changed_image[0][-1, 0, 3, 3] += 1
    changed_label[1][-1] = 0
    found = [
        whole,
        load(four(test=changed_image)).fingerprint,
        load(four(test=changed_label)).fingerprint,
        load({name: (x.astype(np.float16), y) for name, (x, y) in four().items()}).fingerprint,
        load(four(augment=keep), source="a").fingerprint,
        load(four(augment=keep), source="b").fingerprint,
    ]
    assert len(set(found)) == len(found)
    assert load(four(), source="a").fingerprint == whole  # without an augmentation its source decides nothing


# the bundled data


def test_the_bundled_digits_are_900_97_350_450_images_of_all_ten_classes_with_an_augmentation():
    root = Path(__file__).parents[2]
    loader = load_callable("models/digits/data.py:load", root, "data", DataError)
    splits = load_splits(call(loader, {}, "data", DataError), 0, "digits")
    assert [len(getattr(splits, name)) for name in NAMES] == [900, 97, 350, 450]
    assert all(len(getattr(splits, name).labels.unique()) == 10 for name in NAMES)
    assert splits.notes == ()
    image = splits.train.inputs[0][:1]
    assert splits.augment is not None
    moved = splits.augment(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    assert len({view.numpy().tobytes() for view in moved}) == 9  # the nine shifts, the still one among them
    assert any(torch.equal(view, image[0]) for view in moved)
