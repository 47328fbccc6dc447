"""Samples without labels in every batch: only the teacher says what they are."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context, named_seed
from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.policy import Asked, Drawn, Policy, Rows
from kdc.distill.settings import Training
from kdc.distill.strategy_settings.unlabelled import Unlabelled
from kdc.distill.views import View, view


class UnlabelledSamples(Policy):
    """The last round(share * batch) samples of each batch give way to samples of the unlabeled split.

    They come in the order of a permutation, and of another one when all were used, so that each is used as often as any
    other, and a step's are known by its number alone. They are seen through views of their own with the training's
    augmentation and transforms, for which the teacher's answers are stored beside those for the training split. Their
    label is -1: a loss of labels ignores them, though its mean over the batch counts them.
    Source: distillation with unlabelled samples as in SimCLRv2, Chen et al. 2020, arXiv:2006.10029, and SSLD, Cui et al.
        2021, arXiv:2103.05959 (abstracts); a fixed share of each batch is ours.
    """

    reads_teacher = False  # the objectives do
    undivided = True  # whose turn it is goes by the whole batch

    def __init__(self, settings: Unlabelled, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.context = settings, settings.kind, context
        given = context.data.unlabeled
        if given is None or not len(given):
            raise DataError(
                f"{self.kind}: the data have no unlabeled split, or an empty one",
                do=f'give samples under "unlabeled" in what the data\'s load returns, or leave {self.kind} out',
            )
        self._pool, self._name = _without_labels(given), "unlabeled"
        self._orders: dict[int, torch.Tensor] = {}
        self._seen: tuple[int, View] | None = None
        self._answers: Rows | None = None

    def start(self, training: Training, asked: Asked) -> None:
        self._transforms, self._asked = training.transforms, asked
        if self.settings.per_class is not None:
            outputs = asked(View(self._pool, "unlabeled"))[torch.arange(len(self._pool))]
            self._pool = self._pool[surest(outputs, self.settings.per_class)]
            self._name = f"unlabeled-top{self.settings.per_class}"

    def change(self, drawn: Drawn) -> Drawn:
        stay = len(drawn.index) - round(self.settings.share * len(drawn.index))
        which = self._turn(drawn.number, len(drawn.index) - stay)
        seen = self._view(drawn.view)
        samples = seen.samples[which]
        answers = None
        if drawn.teacher is not None:
            if self._answers is None:
                self._answers = self._asked(seen)
            answers = torch.cat([drawn.teacher[:stay], self._answers[which]])
        both = zip(drawn.inputs, samples.inputs, strict=True)
        return dataclasses.replace(
            drawn,
            index=torch.cat([drawn.index[:stay], len(self.context.data.train) + which]),
            inputs=tuple(torch.cat([old[:stay], new]) for old, new in both),
            labels=torch.cat([drawn.labels[:stay], samples.labels]),
            teacher=answers,
            others=_joined(drawn.others, seen.others, stay, which),
            share=_joined(drawn.share, seen.share, stay, which),
        )

    def _turn(self, step: int, count: int) -> torch.Tensor:
        """The samples whose turn it is at this step, [count]: a stretch of all permutations, one after another."""
        places = torch.arange(step * count, (step + 1) * count)
        rounds = places // len(self._pool)
        needed = sorted(set(rounds.tolist()))
        self._orders = {
            number: self._orders[number] if number in self._orders else self._order(number) for number in needed
        }
        orders = torch.stack([self._orders[number] for number in needed])
        return orders[rounds - needed[0], places % len(self._pool)]

    def _order(self, number: int) -> torch.Tensor:
        return torch.randperm(len(self._pool), generator=self.context.generator(f"{self.kind}.{number}"))

    def _view(self, number: int) -> View:
        """View `number` of the pool, with draws of its own, kept while it is used."""
        if self._seen is None or self._seen[0] != number:
            data = dataclasses.replace(self.context.data, train=self._pool)
            made = view(data, named_seed(self.context.seed, "unlabeled"), number, self._transforms)
            self._seen = number, dataclasses.replace(made, key=f"{self._name}-{made.key}")
            self._answers = None
        return self._seen[1]


def surest(outputs: torch.Tensor, per_class: int) -> torch.Tensor:
    """The samples of which the teacher is surest, at most `per_class` of each class that it sees in them.

    Of the samples whose largest probability is of class c, those with the largest; of equal ones the earlier.

    Args: outputs: the teacher's logits, [n, classes]. per_class: 1 or more.
    Returns: indices, int64, rising; fewer than classes * per_class where a class has fewer samples.
    Source: the "top-k per class" of SSLD, Cui et al. 2021, arXiv:2103.05959, as PaddleClas documents it, after Yalniz et
        al. 2019, arXiv:1905.00546.
    """
    confidence, classes = functional.softmax(outputs.double(), 1).max(1)
    order = torch.argsort(confidence, descending=True, stable=True)
    kept = [order[classes[order] == one][:per_class] for one in sorted(set(classes.tolist()))]
    return torch.cat(kept).sort().values


def _without_labels(split: Split) -> Split:
    """The samples with -1 for each label, whatever the labels were."""
    return Split(split.inputs, torch.full_like(split.labels, -1))


def _joined(old: torch.Tensor | None, new: torch.Tensor | None, stay: int, which: torch.Tensor) -> torch.Tensor | None:
    return None if old is None or new is None else torch.cat([old[:stay], new[which]])
