"""The training split as the student sees it in an epoch: a fixed function of the seed and the epoch's view.

The whole split is augmented at once, with named seeds, and then changed by the recipe's own transforms. So the teacher's
outputs can be stored beside it, and are of the very inputs that the student sees. (A cache keyed by the sample alone,
under fresh augmentation, pairs one crop's answer with another crop: "a consistent teacher", Beyer et al. 2022,
arXiv:2106.05237, section 3.1, shows what that costs.)
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch

from kdc.core.contract import named_seed
from kdc.core.data import Split, Splits
from kdc.distill.strategy_settings.views import ViewTransform

VIEW_BLOCK = 512


@dataclass(frozen=True)
class View:
    """Samples of an epoch, and what names them: equal keys under one seed and data are equal samples.

    A mixed sample has `share` [n] of its own label and the rest of the one in `others` [n].
    """

    samples: Split
    key: str
    others: torch.Tensor | None = None
    share: torch.Tensor | None = None


Transform = Callable[..., View]  # (view, settings, generator) -> the changed view


def view(
    data: Splits, seed: int, number: int, transforms: Sequence[ViewTransform] = (), workers: Executor | None = None
) -> View:
    """View `number` of the training split; without augmentation and transforms all numbers are one view.

    Workers, where there are any, augment the blocks: the view is the same, for each block has a generator of its own.
    """
    if data.augment is None and not transforms:
        return View(data.train, "0")
    made = View(_augmented(data, seed, number, workers), f"{number}")
    for place, settings in enumerate(transforms):
        generator = torch.Generator().manual_seed(named_seed(seed, "view", number, settings.kind, place))
        made = _function(settings)(made, settings, generator)
    if not transforms:
        return made
    named = hashlib.sha256("\n".join(f"{t.kind} {t.model_dump_json()}" for t in transforms).encode()).hexdigest()
    return View(made.samples, f"{number}-{named[:16]}", made.others, made.share)


def _augmented(data: Splits, seed: int, number: int, workers: Executor | None) -> Split:
    """Each block of samples augmented with a generator of its own."""
    augment = data.augment
    if augment is None:
        return data.train

    def changed(i: int, block: torch.Tensor) -> torch.Tensor:
        return augment(block, torch.Generator().manual_seed(named_seed(seed, "view", number, i)))

    blocks = torch.split(data.train.inputs[0], VIEW_BLOCK)
    made = (map if workers is None else workers.map)(changed, range(len(blocks)), blocks)
    return Split((torch.cat(list(made)), *data.train.inputs[1:]), data.train.labels)


def _function(settings: ViewTransform) -> Transform:
    module, name = settings.transform.split(":")
    found: Transform = getattr(importlib.import_module(module), name)
    return found
