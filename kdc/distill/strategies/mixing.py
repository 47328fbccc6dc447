"""Samples mixed in pairs, over a whole view: both models see the mixture."""

from __future__ import annotations

import torch

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.strategy_settings.views import CutMix, Mixup
from kdc.distill.views import View


def mixup(view: View, settings: Mixup, generator: torch.Generator) -> View:
    """Each sample mixed with another of the view: share * x + (1 - share) * x[partner], and the labels likewise.

    Args: generator: draws the partners (a permutation) and the shares, Beta(alpha, alpha), one a sample; and which
        samples are mixed, where `portion` is below 1: the others have a share of 1.
    Returns: the mixed view; its labels stay each sample's own, with `others` and `share` beside them.
    Raises: DataError where an input is not of floating point, for numbers of tokens cannot be mixed.
    Source: Zhang et al. 2018, arXiv:1710.09412, equation 1. Both models see the mixture, as in "a patient and consistent
        teacher", Beyer et al. 2022, arXiv:2106.05237, section 3.1. Partial mixup: "Understanding the role of mixup in
        knowledge distillation", as the authors' code (hchoi71/MIX-KD) does it. A teacher that was itself trained with
        mixup, which that paper studies too, is a matter of the teacher's training and no setting here.
    """
    samples = view.samples
    refuse_integers(samples.inputs, settings.kind)
    partner, share = pairs(len(samples), settings.alpha, settings.portion, generator)
    inputs = tuple(blend(tensor, tensor[partner], share) for tensor in samples.inputs)
    return View(Split(inputs, samples.labels), view.key, samples.labels[partner], share)


def cutmix(view: View, settings: CutMix, generator: torch.Generator) -> View:
    """Each image with a box of another image of the view in its place; the share is the area that stays.

    The box has sqrt(1 - s) of the image's sides, s drawn from Beta(alpha, alpha), with a centre anywhere in the image; it
    is cut off at the border, and the share is of what is left of it.

    Returns: the mixed view; its labels stay each sample's own, with `others` and `share` beside them.
    Raises: DataError for anything but one input of images, [n, channels, height, width].
    Source: Yun et al. 2019, arXiv:1905.04899, equations 1 and 2, as the authors' code cuts the box.
    """
    images = only_images(view.samples.inputs, settings.kind)
    count, _, height, width = images.shape
    partner = torch.randperm(count, generator=generator)
    side = (1 - beta(settings.alpha, count, generator)).sqrt()
    rows, down = _stretch(height, side, generator)
    columns, across = _stretch(width, side, generator)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    mixed = torch.where(inside, images[partner], images)
    share = 1 - down * across / (height * width)
    return View(Split((mixed,), view.samples.labels), view.key, view.samples.labels[partner], share)


def _stretch(size: int, side: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `size` places a box of this share of them covers, [n, size], and how many these are, [n]."""
    half = (side * size).long() // 2
    centre = torch.randint(size, (len(side),), generator=generator)
    places = torch.arange(size)
    covered = (places >= (centre - half)[:, None]) & (places < (centre + half)[:, None])
    return covered, covered.sum(1).float()


def pairs(count: int, alpha: float, portion: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sample's partner, int64 [count], and its own share of the mixture, float32 [count].

    Shares are drawn from Beta(alpha, alpha) for `portion` of the samples (rounded, drawn by chance), and 1 for the rest.
    """
    partner = torch.randperm(count, generator=generator)
    share = beta(alpha, count, generator)
    if portion < 1:
        share[torch.randperm(count, generator=generator)[round(portion * count) :]] = 1.0
    return partner, share


def beta(alpha: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws of Beta(alpha, alpha), [count]: X / (X + Y) of two Gamma(alpha) draws."""
    concentration = torch.full((2, count), alpha, dtype=torch.float64)
    draws: torch.Tensor = torch._standard_gamma(concentration, generator=generator).clamp_min(1e-300)
    return (draws[0] / draws.sum(0)).float()


def blend(one: torch.Tensor, other: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """share * one + (1 - share) * other, with a share for each sample: [n, ...], [n, ...], [n] -> [n, ...]."""
    wide = share.to(one.dtype).reshape(-1, *(1,) * (one.dim() - 1))
    mixed: torch.Tensor = wide * one + (1 - wide) * other
    return mixed


def refuse_integers(inputs: tuple[torch.Tensor, ...], kind: str) -> None:
    """Raises: DataError for inputs that cannot be mixed."""
    for number, tensor in enumerate(inputs):
        if not tensor.is_floating_point():
            raise DataError(
                f"{kind}: input {number} holds {tensor.dtype}; expected floating point: other numbers cannot be mixed",
                do=f"leave {kind} out of the training for these data",
            )


def only_images(inputs: tuple[torch.Tensor, ...], kind: str) -> torch.Tensor:
    """The one input, [n, channels, height, width] of floating point. Raises: DataError for any other."""
    if len(inputs) == 1 and inputs[0].dim() == 4 and inputs[0].is_floating_point():
        return inputs[0]
    found = ", ".join(f"{list(tensor.shape)} of {tensor.dtype}" for tensor in inputs)
    raise DataError(
        f"{kind}: the inputs are {found}; expected one input of images, [n, channels, height, width] of floating point",
        do=f"leave {kind} out of the training for these data",
    )
