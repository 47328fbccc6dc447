"""The table of kernels' times, and how it is read between the points that were measured.

Each kind of kernel has a curve: a roofline whose multiply-accumulates go up in stairs, times a correction that is smooth
over the logarithms of the kernel's sizes. `fit` says where both are from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from targets.predictor.kernels import Kernel

Floats = NDArray[np.float64]
STEPS = (1, 8, 16, 32, 64)
"""Widths that a stair can have, in channels or columns."""
CACHES_MB = (0.5, 1, 2, 4, 8, 16, 32)
"""Sizes that a cache can have: constants come from the next one where more than this passes between two of their reads."""
SPILLS_MB = (1, 4, 16)
"""The same for what a kernel reads and writes itself: steps are few, for its sizes tell much of this already."""
COSTS = (
    "node",
    *(f"macs in steps of {step}" for step in STEPS),
    "read",
    "written",
    "constants",
    *(f"constants beyond {size:g} MB" for size in CACHES_MB),
    *(f"moved beyond {size:g} MB" for size in SPILLS_MB),
)
PLAUSIBLE = (5000.0, *(0.5 for _ in STEPS), 1.0, 1.0, 1.0, *(1.0 for _ in CACHES_MB), *(1.0 for _ in SPILLS_MB))
"""What each cost is at most on a slow machine, in ns: a cost that no measurement tells apart must not run away."""
LEAST_NS = 50.0  # that any node costs: where a roofline found none
FAR = 2.0  # doublings from the nearest measured sizes, all sizes together, from which on an estimate is a guess
_STAIRS = ("outputs", "columns")  # the size that is counted in steps


def terms(kernel: Kernel) -> Floats:
    """What a roofline's costs are multiplied with, in the order of COSTS: 1, multiply-accumulates, bytes."""
    width = next((kernel.sizes[name] for name in _STAIRS if name in kernel.sizes and kernel.macs), 1)
    stairs = [kernel.macs * math.ceil(width / step) * step / width for step in STEPS]
    # Scales, axes and shapes are too small to wait for: only the constants of products come from one cache or the next
    weights = kernel.weight_bytes if kernel.macs else 0
    constants = [weights * _beyond(kernel.passing_bytes, size) for size in CACHES_MB]
    moved = kernel.read_bytes + kernel.written_bytes
    spilled = [moved * _beyond(moved, size) for size in SPILLS_MB]
    read = kernel.read_bytes + kernel.weight_bytes - weights
    return np.array([1.0, *stairs, read, kernel.written_bytes, weights, *constants, *spilled])


def _beyond(passing: int, cache_mb: float) -> float:
    """From 0 at a cache's size to 1 at twice as much: what is read in turns leaves a cache soon when it does not fit."""
    return min(1.0, max(0.0, math.log2(max(passing, 1) / (cache_mb * 1e6))))


def place(kernel: Kernel) -> Floats:
    """Where a kernel lies among those of its kind: the binary logarithms of its sizes, by their names' order."""
    found: Floats = np.log2([float(kernel.sizes[name]) for name in sorted(kernel.sizes)] or [1.0])
    return found


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Between places a [n, d] and b [m, d]: [n, m]."""
    found: Floats = np.maximum(0.0, (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T)
    return found


class Smoothness(BaseModel, frozen=True, extra="forbid"):
    """How corrections of kernels are alike: a smooth part and a rough one, each with its size and its reach.

    The sizes are standard deviations of the ratio's logarithm, the reaches doublings of a size.
    """

    smooth: float = Field(default=0.4, gt=0)
    smooth_reach: float = Field(default=3.0, gt=0)
    rough: float = Field(default=0.15, gt=0)
    rough_reach: float = Field(default=1.0, gt=0)

    def between(self, a: Floats, b: Floats) -> Floats:
        """Covariances of corrections at places a [n, d] and b [m, d]: [n, m]."""
        return self.apart(squared_distances(a, b))

    def apart(self, squared: Floats) -> Floats:
        """Covariances of corrections whose places are these squared distances apart."""
        smooth = self.smooth**2 * np.exp(-squared / (2 * self.smooth_reach**2))
        rough: Floats = self.rough**2 * np.exp(-np.sqrt(squared) / self.rough_reach)
        return smooth + rough


class Curve(BaseModel, frozen=True, extra="forbid"):
    """The times of one kind of kernel.

    costs: ns for each of COSTS. places [n, d] and weights [n]: the correction at x is the sum of the covariances with
    the places, each with its weight.
    """

    sizes: tuple[str, ...]
    costs: tuple[float, ...]
    places: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @cached_property
    def arrays(self) -> tuple[Floats, Floats, Floats]:
        """costs, places, weights as arrays."""
        return np.array(self.costs), np.array(self.places), np.array(self.weights)

    def roofline_ns(self, kernel: Kernel) -> float:
        """The time without the correction."""
        return max(LEAST_NS, float(self.arrays[0] @ terms(kernel)))


class Table(BaseModel, frozen=True, extra="forbid"):
    """All curves of one machine; run_ns is what a run costs beside its kernels."""

    run_ns: float
    smoothness: Smoothness
    noise: float = Field(description="standard deviation of a measured time's logarithm that the fit found")
    curves: dict[str, Curve]

    def kernel_ns(self, kernel: Kernel) -> float | None:
        """One kernel's time; None where no kernel of its kind was measured."""
        curve = self.curves.get(kernel.kind)
        if curve is None or tuple(sorted(kernel.sizes)) != curve.sizes:
            return None
        correction = 0.0
        if curve.places:
            _, places, weights = curve.arrays
            correction = float(self.smoothness.between(place(kernel)[None], places)[0] @ weights)
        return curve.roofline_ns(kernel) * math.exp(correction)

    def near(self, kernel: Kernel) -> bool:
        """Whether a kernel of about these sizes was measured."""
        curve = self.curves.get(kernel.kind)
        if curve is None or not curve.places:
            return curve is not None
        apart = float(np.sqrt(((curve.arrays[1] - place(kernel)) ** 2).sum(1)).min())
        return apart <= FAR

    def total_ns(self, kernels: Sequence[Kernel]) -> float:
        """A run's time; kernels of unknown kinds count nothing."""
        return self.run_ns + sum(self.kernel_ns(kernel) or 0.0 for kernel in kernels)
