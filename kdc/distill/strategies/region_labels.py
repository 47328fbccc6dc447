"""What the teacher says of a region, where it can be trusted; the softened label of the image where it cannot."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from kdc.core.contract import Context
from kdc.distill.policy import Drawn, Policy
from kdc.distill.strategy_settings.regions import RegionLabels


class Calibrated(Policy):
    """The teacher's answers to a step's samples, calibrated by `calibrated`; every objective on outputs sees these.

    Works with views of regions (`crops`, `self-mix`), whose answers are stored per region. An unlabelled sample keeps the
    teacher's answer. Mixtures of two images make any teacher unsure, and are then mostly labelled: `self-mix` stands in
    for `mixup` here.
    """

    def __init__(self, settings: RegionLabels, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.teacher = settings, settings.kind, context.teacher

    @torch.no_grad()
    def change(self, drawn: Drawn) -> Drawn:
        answers = drawn.teacher if drawn.teacher is not None else self.teacher(*drawn.inputs).float()
        settings = self.settings
        target = softened(drawn.labels, answers.shape[1], settings.smoothing).to(answers)
        if drawn.others is not None and drawn.share is not None:
            other = softened(drawn.others, answers.shape[1], settings.smoothing).to(answers)
            target = torch.lerp(other, target, drawn.share.to(answers)[:, None])
        high = settings.high if settings.above == "labels" else 1.0
        made = calibrated(answers, target, settings.low, high)
        known = drawn.labels >= 0
        if drawn.others is not None:
            known = known & (drawn.others >= 0)
        return dataclasses.replace(drawn, teacher=torch.where(known[:, None], made, answers))


def calibrated(outputs: torch.Tensor, target: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The teacher's logits where low <= max softmax(outputs) <= high, and log target elsewhere.

    A temperature of an objective softens both; at temperature 1 a region's target is `target` itself where it stands in.

    Args: outputs: the teacher's logits, [n, classes]. target: probabilities, all above 0, [n, classes]. low, high:
        confidences, 0 to 1.
    Returns: logits, [n, classes].
    Source: FerKD, Shen 2023, arXiv:2312.17473, as in the abstract ("calibrates the less-confident regions to be the
        context using softened hard groundtruth labels"). The repository szq0214/FKD has no code of it; that confidence is
        the largest probability, and the thresholds, are ours.
    """
    confidence = functional.softmax(outputs, 1).amax(1, keepdim=True)
    return torch.where((confidence < low) | (confidence > high), target.log(), outputs)


def softened(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """(1 - smoothing) * the label's class + smoothing / classes on each: [n] -> probabilities, [n, classes].

    A label below 0 is read as class 0.
    """
    return (1 - smoothing) * functional.one_hot(labels.clamp_min(0), classes).double() + smoothing / classes
