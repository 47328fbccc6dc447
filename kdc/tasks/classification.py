"""Classification: one of several classes for each sample, from logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
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

    def metrics(
        self, outputs: Array, labels: Array, teacher: Array | None, previous: Array | None = None
    ) -> dict[str, float]:
        """Points, 0 to 100: accuracy; macro_f1, the mean over classes; worst_class, the accuracy of the class that has
        the least; expected_calibration_error, lower is better.

        `temperature` is what the logits would have to be divided by for the least negative log-likelihood on these
        samples: above 1 the model is surer than it is right (Guo et al. 2017, arXiv:1706.04599, section 4.2).

        Where the teacher's logits [n, classes] are given: agreement, how often both choose the same class; worst_class_drop,
        the most that a class loses against the teacher (a small drop in all can be a large one for few: Hooker et al.
        2020, arXiv:2010.03058). Where the teacher's or those of the previous release are: churn, how often another class
        is chosen than the previous release's (without one: the teacher's), and new_mistakes, how often that one was right
        and this one is wrong (Yan et al. 2021, arXiv:2011.09161, negative flips).
        """
        chosen = outputs.argmax(1)
        right = self.scores(outputs, labels)
        classes = np.unique(labels)
        by_class = np.array([right[labels == label].mean() for label in classes])
        found = {
            "accuracy": 100.0 * float(right.mean()),
            "macro_f1": 100.0 * macro_f1(chosen, labels),
            "worst_class": 100.0 * float(by_class.min()),
            "expected_calibration_error": 100.0 * expected_calibration_error(outputs, labels),
            "temperature": best_temperature(outputs, labels),
        }
        if teacher is not None:
            before = self.scores(teacher, labels)
            dropped = np.array([before[labels == label].mean() for label in classes]) - by_class
            found["agreement"] = 100.0 * float((chosen == teacher.argmax(1)).mean())
            found["worst_class_drop"] = 100.0 * float(dropped.max())
        base = teacher if previous is None else previous
        if base is not None:
            found["churn"] = 100.0 * float((chosen != base.argmax(1)).mean())
            found["new_mistakes"] = 100.0 * float(((self.scores(base, labels) == 1) & (right == 0)).mean())
        return found

    def temperature(self, outputs: Array, labels: Array) -> float:
        """The best temperature of these logits [n, classes] for labels [n], were one sample more answered by chance.

        Without that one, a model that makes no mistake here could not be sure enough. The correction is of the kind of
        Platt 1999, section 2.2, for two classes.
        """
        return best_temperature(outputs, labels, doubt=1 / (len(labels) + 1))

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


def macro_f1(chosen: Array, labels: Array) -> float:
    """The mean over classes of 2 hits / (times chosen + times right), each class counted once however many samples it has.

    Args: chosen, labels: class numbers, [n]. A class that is in neither is left out.
    Returns: 0 to 1; equal to scikit-learn's f1_score(average="macro"), which every command would wait for to be imported.
    """
    several = max(int(chosen.max()), int(labels.max())) + 1
    hits = np.bincount(labels[chosen == labels], minlength=several)
    times = np.bincount(chosen, minlength=several) + np.bincount(labels, minlength=several)
    return float((2 * hits[times > 0] / times[times > 0]).mean())


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


def best_temperature(
    logits: Array, labels: Array, low: float = 0.02, high: float = 50.0, *, doubt: float = 0.0
) -> float:
    """The temperature between `low` and `high` at which the softened logits have the least negative log-likelihood.

    The likelihood is concave in 1/T, so that golden-section search over log T finds it, to a thousandth of T.

    Args: logits: [n, classes]. labels: [n]. doubt: share of each label that is spread over all classes, 0 to 1.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2 (temperature scaling).
    """
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    own = (1 - doubt) * shifted[np.arange(len(labels)), labels] + doubt * shifted.mean(1)

    def cost(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float((np.log(np.exp(shifted * scale).sum(1)) - own * scale).mean())

    golden = (np.sqrt(5.0) - 1) / 2
    left, right = float(np.log(low)), float(np.log(high))
    while right - left > 1e-3:
        one, other = right - golden * (right - left), left + golden * (right - left)
        if cost(one) <= cost(other):
            right = other
        else:
            left = one
    return float(np.exp((left + right) / 2))


TASKS: Mapping[str, Task] = {"classification": Classification()}


def task_of(name: str) -> Task:
    """The task of this name. Raises: RecipeError for an unknown one."""
    if name not in TASKS:
        raise RecipeError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}", do="mend `task` in the recipe")
    return TASKS[name]
