"""The user's data: everything that is refused says where, what was found, what was expected and what to do."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_forms import NAMES, Samples, Stream, four, load, pair, refused
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

# what is refused: forms


def test_something_that_is_no_data_is_refused():
    refused(None, "returned nothing", "expected a mapping with the keys train, calibration", "bring-your-own.md")
    refused(3, "returned a int")


@pytest.mark.parametrize(("key", "meant"), [("val", "validation"), ("calib", "calibration"), ("tests", "test")])
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(key: str, meant: str):
    refused(four(**{key: pair()}), f"unknown key '{key}'", "expected train, calibration", f"did you mean '{meant}'?")


def test_data_without_a_training_split_are_refused():
    refused({"test": pair()}, "returned test; expected at least train", "under the key 'train'")


def test_a_split_of_another_kind_is_refused():
    refused(four(test=3), "test is a int; expected a pair (inputs, labels)", "bring-your-own.md")
    refused(four(test={"x": 1}), "test is a dict")


def test_a_sample_that_is_no_pair_is_refused():
    refused(four(train=Samples(9, lambda i: {"image": i})), "train, sample 0 is a dict; expected (x, y)")
    refused(four(train=Samples(9, lambda i: (1, 2, 3))), "is a tuple of 3; expected (x, y)")


def test_an_image_that_is_no_array_is_refused():
    class Image:
        def getbands(self) -> tuple[str, ...]:
            return ("L",)

        __array__ = None

    refused(four(train=Samples(9, lambda i: (Image(), 0))), "sample 0: found a", "Image; expected an array or a tensor")
    refused(four(train=(np.array(["a", "b"]), [0, 1])), "an array of <U1; expected numbers")


def test_samples_of_different_shapes_are_refused():
    ragged = Samples(9, lambda i: (np.zeros((3, 4 + (i == 5)), np.float32), 0))
    refused(four(train=ragged), "sample 5: found torch.float32 of shape [1, 3, 5]", "[1, 3, 4]", "resize or pad")
    refused(four(train=([[1, 2], [3]], [0, 1])), "rows of different shapes")


def test_a_list_of_samples_where_inputs_are_expected_is_refused():
    images, labels = pair(8)
    refused(four(train=([image[0] for image in images], labels)), "a list of 8 arrays", "numpy.stack")


def test_a_dataset_that_augments_at_random_is_refused_with_what_to_do():
    generator = torch.Generator().manual_seed(0)
    images, labels = pair()
    flipping = Samples(40, lambda i: (images[i] * (1 if torch.rand((), generator=generator) < 0.5 else -1), labels[i]))
    refused(four(train=flipping), "differs from one read to the next", 'under the key "augment"', "generator")


def test_a_dataset_that_raises_is_blamed_by_its_line():
    class Broken(Samples):
        def __getitem__(self, index: int) -> Any:
            if index == 3:
                raise OSError("no such image")
            return np.zeros(2), 0

    refused(four(train=Broken(9, lambda i: None)), f"train raised at {__file__}:", "OSError: no such image")


def test_a_loader_whose_sampler_weighs_the_samples_is_refused():
    dataset = TensorDataset(*map(torch.from_numpy, pair()))
    loader = DataLoader(dataset, 4, sampler=WeightedRandomSampler([1.0] * 40, 40))
    refused(four(train=loader), "whose WeightedRandomSampler chooses the samples", "Subset")


def test_data_that_do_not_fit_into_memory_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    read: list[int] = []

    def sample(index: int) -> Any:
        read.append(index)
        return np.zeros(1000, np.float32), 0

    refused(four(train=Samples(10_000, sample)), "GB of memory", "60%", "uint8")
    assert len(read) == 1


def test_a_stream_that_does_not_fit_into_memory_is_refused_on_the_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    endless = Stream([], [])
    endless.samples = ((np.zeros(1000, np.float32), 0) for _ in iter(int, 1))  # type: ignore[assignment]
    refused(four(train=endless), "GB of memory", "fewer or smaller samples")


# what is refused: values


def test_an_empty_split_is_refused():
    empty = (np.zeros((0, 1, 4, 4), np.float32), np.zeros(0, np.int64))
    refused(four(validation=empty), "validation is empty", "leave the split out")
    refused(four(train=Samples(0, lambda i: None)), "train is empty")
    refused(four(train=Stream([], [])), "train is empty")


def test_different_lengths_are_refused():
    images, labels = pair()
    refused(four(test=(images, labels[:-1])), "test: 40 inputs and 39 labels", "one label for each sample")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused_with_the_first_index(value: float):
    images, labels = pair()
    images[[7, 9], 0, 1, 2] = value
    refused(four(validation=(images, labels)), "validation: 2 of 40 samples hold NaN or infinite", "first at index 7")


def test_labels_that_are_not_whole_are_refused():
    images, labels = pair()
    refused(four(train=(images, labels + 0.5)), "train: 40 labels are not whole numbers, the first at sample 0: 0.5")
    refused(
        four(train=(images, np.where(labels == 1, np.nan, labels))), "not whole numbers, the first at sample 1: nan"
    )
    refused(four(train=(images, np.full((40, 4), 0.25))), "not whole numbers", "labels.argmax(1)")


def test_negative_labels_are_refused():
    images, labels = pair()
    refused(four(test=(images, labels - 1)), "test: 10 labels are negative, the first at sample 0: -1", "from 0")


def test_splits_of_different_shapes_are_refused():
    refused(four(test=pair(shape=(1, 5, 4))), "test holds float32[n, 1, 5, 4]", "train holds float32[n, 1, 4, 4]")
    images, labels = pair(seed=9)
    refused(four(test=(images.astype(np.float16), labels)), "test holds float16[n, 1, 4, 4]", "number types")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train", "calibration"),
        ("train", "validation"),
        ("train", "test"),
        ("calibration", "test"),
        ("validation", "test"),
    ],
)
def test_a_sample_in_two_splits_is_refused_with_the_first_pair(one: str, other: str):
    given = four()
    given[other][0][[4, 6]] = given[one][0][[30, 11]]
    given[other][1][:] = 1  # leaking is by the inputs, whatever the label says
    refused(
        given,
        f"2 of the 40 samples of {other} stand in {one} too",
        f"{other}[4] = {one}[30]",
        f"remove them from {one}",
    )


def test_validation_and_calibration_may_share_samples():
    given = four()
    load(given | {"calibration": given["validation"]})


def test_a_sample_leaks_only_when_all_its_inputs_are_equal():
    shared = np.ones((40, 2), np.float32)
    load({name: ((pair(seed=seed)[0], shared), pair()[1]) for seed, name in enumerate(NAMES)})


# what is refused: augmentation


def test_an_augmentation_that_is_no_callable_is_refused():
    refused(four(augment="flip"), "augment is a str; expected a callable", "augment(images, generator)")


def test_an_augmentation_that_changes_the_shape_or_type_is_refused():
    refused(four(augment=lambda x, g: x[:, :, 1:]), "it returned torch.float32 [8, 1, 3, 4]; expected the same")
    refused(four(augment=lambda x, g: x.double()), "it returned torch.float64")
    refused(four(augment=lambda x, g: x.numpy()), "it returned a ndarray")


def test_an_augmentation_that_draws_from_elsewhere_is_refused():
    own = torch.Generator().manual_seed(0)
    refused(four(augment=lambda x, g: x + torch.rand(1, generator=own)), "different images", "generator=generator")


def test_an_augmentation_that_works_in_place_is_refused():
    refused(four(augment=lambda x, g: x.mul_(2)), "changes its input in place", "images.clone()")


def test_an_augmentation_that_raises_is_blamed_by_its_line():
    def broken(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise ValueError("no")

    refused(four(augment=broken), f"augment raised at {__file__}:", "ValueError: no")
    refused(four(augment=lambda images: images), "it takes (images)", "2 positional ones")
