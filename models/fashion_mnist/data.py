"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 + 10,000 grey images of clothing, 28x28, ten classes."""

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FOLDER_VARIABLE = "KDC_FASHION_MNIST"
MEAN, STD = 0.2860, 0.3530  # of the training images' pixels scaled to [0, 1]
VALIDATION, CALIBRATION = 5_000, 1_000


def load(folder: str | None = None) -> dict[str, Any]:
    """The four splits as float32 images [n, 1, 28, 28] with int64 labels [n], and the augmentation of the training images.

    Args:
        folder: where the four `.gz` files lie. Default: the environment variable `KDC_FASHION_MNIST`, else the folder of
            the Debian package `dataset-fashion-mnist`.
    """
    place = Path(folder or os.environ.get(FOLDER_VARIABLE) or DEBIAN_FOLDER)
    if not (place / "train-images-idx3-ubyte.gz").is_file():
        raise FileNotFoundError(
            f"no Fashion-MNIST in {place}: either `apt-get install dataset-fashion-mnist`, or put the four .gz files of "
            f"the data set into a folder and name it (data.arguments.folder in the recipe, or {FOLDER_VARIABLE}=FOLDER)"
        )
    images, labels = _read(place, "train")
    order = np.random.default_rng(0).permutation(len(images))
    validation, calibration, train = np.split(order, [VALIDATION, VALIDATION + CALIBRATION])
    return {
        "train": (images[train], labels[train]),
        "calibration": (images[calibration], labels[calibration]),
        "validation": (images[validation], labels[validation]),
        "test": _read(place, "t10k"),
        "augment": shift_and_mirror,
    }


def shift_and_mirror(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to two pixels in both directions, and mirrored half of the time; same shape out."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-MEAN / STD)
    rows = torch.randint(0, 5, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 5, (n, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(n)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(folder / f"{split}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return ((pixels / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32), labels.astype(np.int64)
