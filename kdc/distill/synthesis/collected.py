"""Which samples of a collected, unlabeled set are of what the teacher knows: a web's images under a shifted distribution."""

from __future__ import annotations

from typing import Literal

import torch

from kdc.core.errors import DataError
from kdc.distill.synthesis.terms import entropy, one_hot

Noise = Literal["confidence", "entropy"]


def clean(outputs: torch.Tensor, count: int, noise: Noise = "confidence", balanced: bool = False) -> torch.Tensor:
    """The samples that the teacher finds least noisy.

    Noise is -log max softmax(outputs) ("confidence") or the entropy of softmax(outputs). Balanced: classes, as the
    teacher sees them, take turns, each with its least noisy sample that is left; a class that has no more is passed
    over. So no class has more than one sample above another that had samples left to give.

    Args: outputs: the teacher's logits on the collected samples, [n, classes]. count: how many to keep, 1 to n.
    Returns: indices of the samples, int64 [count], rising; of equal noise the earlier sample is kept.
    Raises: DataError where there are fewer samples than that.
    Source: Chen et al. 2021 (DFND, "Learning Student Networks in the Wild", CVPR), data collection by the least
        cross-entropy with the teacher's own prediction, as in the authors' code; entropy and the balance are ours.
    """
    if not 1 <= count <= len(outputs):
        raise DataError(
            f"unlabeled: {count} samples are to be kept of {len(outputs)}",
            do="keep at least one sample, and no more than there are",
        )
    values = (one_hot if noise == "confidence" else entropy)(outputs.double())
    order = torch.argsort(values, stable=True)
    if balanced:
        order = order[torch.argsort(_turns(outputs.argmax(1)[order]), stable=True)]
    return order[:count].sort().values


def _turns(classes: torch.Tensor) -> torch.Tensor:
    """How many samples of its own class stand before each: [n] -> [n]."""
    by_class = torch.argsort(classes, stable=True)
    _, counts = torch.unique_consecutive(classes[by_class], return_counts=True)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    turns = torch.empty_like(classes)
    turns[by_class] = torch.arange(len(classes)) - starts
    return turns
