"""Views of regions: a box of an image enlarged, and a box of an image covered by another of its own."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from kdc.core.data import Split
from kdc.distill.strategies.mixing import beta, only_images
from kdc.distill.strategy_settings.views import Crops, SelfMix
from kdc.distill.views import VIEW_BLOCK, View


def crops(view: View, settings: Crops, generator: torch.Generator) -> View:
    """A box of each image at the image's own size, by linear interpolation between pixels.

    The box has an area of `smallest` to 1 (uniform) and sides in a ratio of 1/stretch to stretch (log-uniform) to the
    image's; a side that would be longer than the image's is as long, and its place is uniform in the image.

    Raises: DataError for anything but one input of images, [n, channels, height, width].
    Source: as the random resized crop of Szegedy et al. 2015, arXiv:1409.4842, section 6, that FKD and FerKD label crop
        by crop (arXiv:2312.17473); they draw areas of 0.08 to 1 of photographs. That a side is cut off rather than drawn
        again is ours.
    """
    images = only_images(view.samples.inputs, settings.kind)
    draws = torch.rand((5, len(images)), generator=generator, dtype=torch.float64)
    area = settings.smallest + (1 - settings.smallest) * draws[0]
    ratio = torch.exp((2 * draws[1] - 1) * math.log(settings.stretch))
    wide, high = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    side = torch.where(draws[4] < settings.flip, -1.0, 1.0)
    zero = torch.zeros_like(wide)
    boxes = torch.stack(
        [
            torch.stack([side * wide, zero, (2 * draws[2] - 1) * (1 - wide)], 1),
            torch.stack([zero, high, (2 * draws[3] - 1) * (1 - high)], 1),
        ],
        1,
    ).to(images.dtype)
    blocks = zip(torch.split(images, VIEW_BLOCK), torch.split(boxes, VIEW_BLOCK), strict=True)
    cut = torch.cat([warped(block, box) for block, box in blocks])
    return View(Split((cut,), view.samples.labels), view.key, view.others, view.share)


def warped(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Each image as seen through an affine map of its places; differentiable in both.

    Args: images: [n, channels, height, width]. maps: [n, 2, 3], from a place (x, y, 1) of the result to one of the image,
        both from -1 to 1 between the outer edges of the pixels; beyond the image its border goes on.
    Returns: as images.
    """
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def self_mix(view: View, settings: SelfMix, generator: torch.Generator) -> View:
    """A box of each image covered by another box of the same image, of the same size at another place.

    The box has sqrt(1 - s) of the image's sides, s drawn from Beta(alpha, alpha). What was mixed is one image, so that
    labels stay, and the teacher's answers vary less than those to mixtures of two images.

    Raises: DataError for anything but one input of images, [n, channels, height, width].
    Source: FerKD, Shen 2023, arXiv:2312.17473, as in the abstract ("mixing similar regions within the same image"; the
        repository szq0214/FKD has no code of it); that both regions are of one size, and unscaled, is ours.
    """
    images = only_images(view.samples.inputs, settings.kind)
    side = (1 - beta(settings.alpha, len(images), generator)).sqrt()
    rows, from_rows = _moved(images.shape[2], side, generator)
    columns, from_columns = _moved(images.shape[3], side, generator)
    number = torch.arange(len(images))[:, None, None]
    moved = images[number, :, from_rows[:, :, None], from_columns[:, None, :]].permute(0, 3, 1, 2)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    mixed = torch.where(inside, moved, images)
    return View(Split((mixed,), view.samples.labels), view.key, view.others, view.share)


def _moved(size: int, side: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of `size` places are covered, and from which place each is then taken; both [n, size]."""
    length = (side * size).long()
    free = (size - length + 1).double()
    to, source = ((torch.rand(len(side), generator=generator, dtype=torch.float64) * free).long() for _ in range(2))
    places = torch.arange(size)
    covered = (places >= to[:, None]) & (places < (to + length)[:, None])
    return covered, torch.where(covered, places + (source - to)[:, None], places)
