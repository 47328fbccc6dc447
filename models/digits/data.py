"""Handwritten digits (Alpaydin and Kaynak 1998, doi:10.24432/C50P49), as scikit-learn bundles them: 1797 grey 8x8 images."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MEAN, STD = 0.3053, 0.3760  # of all pixels scaled to [0, 1]
TEST, VALIDATION, CALIBRATION = 450, 350, 97
SPLIT_SEED = 0  # the splits are part of the data set: a run's own seed does not move them


def load() -> dict[str, Any]:
    """The four splits as float32 images [n, 1, 8, 8] with int64 labels [n], and the augmentation of the training images.

    Every split holds the ten digits in the same shares. No two of the 1797 images are equal, so none can leak.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = ((pixels.reshape(-1, 1, 8, 8) / 16 - MEAN) / STD).astype(np.float32)
    rest = np.arange(len(labels))
    splits: dict[str, Any] = {}
    for name, size in (("test", TEST), ("validation", VALIDATION), ("calibration", CALIBRATION)):
        rest, part = train_test_split(rest, test_size=size, stratify=labels[rest], random_state=SPLIT_SEED)
        splits[name] = (images[part], labels[part].astype(np.int64))
    return {"train": (images[rest], labels[rest].astype(np.int64)), **splits, "augment": shift}


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to one pixel in both directions, background moving in; same shape out.

    No mirroring: a mirrored digit is another sign.
    """
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-MEAN / STD)
    rows = torch.randint(0, 3, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 3, (n, 1), generator=generator) + torch.arange(width)
    sample = torch.arange(n)
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
