"""Affine quantization: real = scale * (integer - zero_point), as ONNX's QuantizeLinear and DequantizeLinear compute it.

Sources: Jacob et al. 2017, arXiv:1712.05877, section 2.1; Krishnamoorthi 2018, arXiv:1806.08342.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Integer = Literal["uint8", "int8"]

SMALLEST_SCALE = 2.0**-100  # far above float32's smallest normal number, so that products of two scales stay normal
GRID = torch.linspace(0.3, 1.0, 71, dtype=torch.float64).tolist()
"""Shares of a range that a search for the least squared error tries."""


class Affine(NamedTuple):
    """A grid of integers on the real line: integers `low`..`high`, a step of `scale`, zero at `zero_point`."""

    scale: float
    zero_point: int
    low: int
    high: int


def integers(dtype: Integer, symmetric: bool) -> tuple[int, int]:
    """The lowest and the highest integer in use. A symmetric int8 leaves -128 out, so that -x is there for every x."""
    if dtype == "uint8":
        return (1, 255) if symmetric else (0, 255)
    return (-127, 127) if symmetric else (-128, 127)


def highest_weight(bits: int) -> int:
    """The largest magnitude of a symmetric integer weight: 127 of 8 bits, 63 of 7.

    >>> highest_weight(8), highest_weight(7)
    (127, 63)
    """
    return int(2 ** (bits - 1) - 1)


def affine_of_range(low: float, high: float, dtype: Integer, *, symmetric: bool) -> Affine:
    """The grid that spans a range; the range is widened to hold 0, which then stands exactly on the grid.

    Args: low, high: finite, low <= high. symmetric: zero stands in the middle of the integers.
    A range of no width gets a step of 1: all it holds is 0.
    Source: Jacob et al. 2017, arXiv:1712.05877, section 3.1 (the nudged zero point).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = integers(dtype, symmetric)
    if low == high:
        return Affine(1.0, (first + last) // 2 if symmetric else first, first, last)
    if symmetric:
        middle = (first + last) // 2
        return Affine(max(max(-low, high) / (last - middle), SMALLEST_SCALE), middle, first, last)
    scale = max((high - low) / (last - first), SMALLEST_SCALE)
    zero_point = min(max(round(first - low / scale), first), last)
    return Affine(scale, zero_point, first, last)


def quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int) -> torch.Tensor:
    """The nearest integers, ties to even, held within low..high; as float, any shape that `scale` broadcasts to."""
    return torch.clamp(torch.round(x / scale) + zero_point, low, high)


def dequantize(q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int) -> torch.Tensor:
    """The real numbers that integers stand for; shapes as in `quantize`."""
    return (q - zero_point) * scale


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int, low: int, high: int
) -> torch.Tensor:
    """The point of the grid nearest to each value: moves none within the grid's ends by more than half a step."""
    return dequantize(quantize(x, scale, zero_point, low, high), scale, zero_point)


def max_abs_scale(weight: torch.Tensor, axis: int | None, high: int = 127) -> torch.Tensor:
    """The symmetric step that just holds the largest weight.

    Args: axis: of the channels that get a scale each; None: one scale for all.
    Returns: shape of `weight` with 1 in place of every other axis, so that it broadcasts; 1 for a channel of zeros.
    """
    others = [i for i in range(weight.dim()) if i != axis]
    largest = weight.abs().amax(others, keepdim=True) if others else weight.abs()
    return torch.where(largest > 0, (largest / high).clamp_min(SMALLEST_SCALE), torch.ones_like(largest))


def mse_clip(weight: torch.Tensor, axis: int | None, high: int = 127) -> torch.Tensor:
    """The share of each channel's max-abs step at which the squared error of quantization is least.

    Args and shape of the result: as in `max_abs_scale`. Values in 0.3..1, from a grid; the largest of equals.
    Sources: Krishnamoorthi 2018, arXiv:1806.08342; Choukroun et al. 2019, arXiv:1902.06822.
    """
    full = max_abs_scale(weight, axis, high)
    others = [i for i in range(weight.dim()) if i != axis]
    best = torch.full_like(full, torch.inf)
    share = torch.ones_like(full)
    for candidate in reversed(GRID):
        scale = full * candidate
        squared = (fake_quantize(weight, scale, 0, -high, high) - weight).square()
        error = squared.sum(others, keepdim=True) if others else squared
        better = error < best
        best = torch.where(better, error, best)
        share = torch.where(better, torch.full_like(share, candidate), share)
    return share


def mse_range(
    centers: torch.Tensor, counts: torch.Tensor, low: float, high: float, dtype: Integer, *, symmetric: bool
) -> tuple[float, float]:
    """The part of low..high whose grid has the least squared error on a histogram.

    Args: centers, counts: [bins], the middle of each bin and how many values fell in it.
    Returns: (low, high) shrunk by one common share from a grid of 0.3..1.
    """
    best, chosen = torch.inf, (low, high)
    for share in reversed(GRID):
        grid = affine_of_range(low * share, high * share, dtype, symmetric=symmetric)
        moved = fake_quantize(centers, torch.tensor(grid.scale, dtype=centers.dtype), *grid[1:]) - centers
        error = float((counts * moved.square()).sum())
        if error < best:
            best, chosen = error, (low * share, high * share)
    return chosen


def percentile_range(edges: torch.Tensor, counts: torch.Tensor, percentile: float) -> tuple[float, float]:
    """The middle of a histogram that holds `percentile` per cent of its values, the rest cut off evenly at both ends.

    Args: edges: [bins + 1], rising. counts: [bins]. percentile: 0..100.
    Returns: (low, high), each an edge of a bin.
    """
    tail = float(counts.sum()) * (1 - percentile / 100) / 2
    below = counts.cumsum(0)
    above = counts.flip(0).cumsum(0)
    first = int((below <= tail).sum())
    last = len(counts) - int((above <= tail).sum())
    return float(edges[min(first, len(counts) - 1)]), float(edges[max(last, 1)])
