"""What a teacher takes at one input, and how standard numbers are brought to its scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec

REACH = math.sqrt(3.0)  # a uniform variable with variance 1 lies in -REACH..REACH


@dataclass(frozen=True)
class Domain:
    """One input: its shape without the batch, its type, and its limits where they are known."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    limits: tuple[float, float] | None

    def scaled(self, standard: torch.Tensor) -> torch.Tensor:
        """Standard numbers (mean 0, variance 1) as inputs: -sqrt(3)..sqrt(3) becomes the limits, where there are any."""
        if self.limits is not None:
            low, high = self.limits
            standard = (low + high) / 2 + (high - low) / (2 * REACH) * standard
            standard = standard.clamp(low, high)  # rounding may pass a limit
        return standard.to(self.dtype)


def domains_of(specs: Sequence[TensorSpec], limits: tuple[float, float] | None) -> tuple[Domain, ...]:
    """The inputs of a model that synthetic samples can be made for.

    Raises: ModelError for inputs of whole numbers, such as tokens, and for sizes that are not fixed but for the batch.
    """
    found = []
    for spec in specs:
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ModelError(
                f"data.synthesise: the teacher's input {spec.name!r} is {spec.dtype}; samples are synthesised by "
                "gradients, which only inputs of floating point numbers have",
                do="give data with `data.load`, or let the teacher begin behind its embedding or its conversion",
            )
        if not spec.shape or isinstance(spec.shape[0], int):
            raise ModelError(
                f"data.synthesise: the teacher's input {spec.name!r} has the shape {list(spec.shape)}; samples are "
                "synthesised in batches, and the first size must be free for them",
                do="name the first size in teacher.inputs, as in [batch, 1, 28, 28]",
            )
        shape = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        if len(shape) < len(spec.shape) - 1:
            free = [size for size in spec.shape[1:] if not isinstance(size, int)]
            raise ModelError(
                f"data.synthesise: the teacher's input {spec.name!r} has the free sizes {', '.join(map(str, free))}; "
                "samples are synthesised for fixed ones",
                do="write numbers for them in teacher.inputs",
            )
        found.append(Domain(shape, dtype, limits))
    return tuple(found)
