"""Classification: one of several classes for each sample, from logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch.nn import functional

from kdc.core.contract import Task
from kdc.core.data import Split, Splits
from kdc.core.errors import DataError, ModelError, RecipeError

Array = np.ndarray[Any, Any]

CALIBRATION_BINS = 15  # as in Guo et al. 2017, section 5


class Classification:
    """One class a sample. Outputs are logits [n, classes], labels are class numbers [n]; metrics are in points."""

    name = "classification"
    metric = "accuracy"

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats: logits [batch, classes], labels [batch] -> [batch]."""
        return functional.cross_entropy(outputs, labels, reduction="none")

    def scores(self, outputs: Array, labels: Array) -> Array:
        """1.0 where the largest logit is the label's, else 0.0: [n, classes], [n] -> [n]."""
        right: Array = (outputs.argmax(1) == labels).astype(np.float64)
        return right

    def metrics(self, outputs: Array, labels: Array, teacher: Array | None) -> dict[str, float]:
        """Points, 0 to 100: accuracy; macro_f1, the mean over classes; expected_calibration_error, lower is better;
        and, where the teacher's logits [n, classes] are given, agreement: how often both choose the same class.
        """
        chosen = outputs.argmax(1)
        found = {
            "accuracy": 100.0 * float(self.scores(outputs, labels).mean()),
            "macro_f1": 100.0 * float(f1_score(labels, chosen, average="macro", zero_division=0)),
            "expected_calibration_error": 100.0 * expected_calibration_error(outputs, labels),
        }
        if teacher is not None:
            found["agreement"] = 100.0 * float((chosen == teacher.argmax(1)).mean())
        return found

    def chance(self, data: Splits) -> float:
        """Points of the guess that is always the validation split's most frequent class."""
        return 100.0 * float(torch.bincount(data.validation.labels).max()) / len(data.validation)

    def check(self, split: Split, name: str, outputs: tuple[int, ...]) -> None:
        """Raises: ModelError for outputs that are not [batch, classes]; DataError for labels out of their range."""
        if len(outputs) != 2 or outputs[1] < 2:
            raise ModelError(
                f"the model's outputs have the shape {['batch', *outputs[1:]]}; classification needs [batch, classes] "
                "with two classes or more",
                do="return logits, one for each class, from the teacher's forward()",
            )
        if split.labels.ndim != 1:
            raise DataError(
                f"{name}: labels of shape {['n', *split.labels.shape[1:]]}; classification needs one class number "
                "a sample, [n]",
                do="return one class number for each sample",
            )
        outside = split.labels >= outputs[1]
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataError(
                f"{name}: {int(outside.sum())} labels are out of range, the first at sample {first}: "
                f"{int(split.labels[first])}; the model has {outputs[1]} outputs, so classes 0 to {outputs[1] - 1}",
                do="number the classes from 0, or take the teacher that was trained for these classes",
            )


def expected_calibration_error(logits: Array, labels: Array, bins: int = CALIBRATION_BINS) -> float:
    """The mean distance between confidence and accuracy, over bins of equal width, weighted by their samples.

    Args: logits: [n, classes]. labels: [n].
    Returns: 0 to 1; 0 is a model that is right as often as it is sure.
    Source: Guo et al. 2017, arXiv:1706.04599, equation 3 (bins open on the left, closed on the right).
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


TASKS: Mapping[str, Task] = {"classification": Classification()}


def task_of(name: str) -> Task:
    """The task of this name. Raises: RecipeError for an unknown one."""
    if name not in TASKS:
        raise RecipeError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}", do="mend `task` in the recipe")
    return TASKS[name]
