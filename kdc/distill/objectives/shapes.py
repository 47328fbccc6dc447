"""What the objectives on features share: shapes that must fit, and arithmetic wide enough for half floats."""

from __future__ import annotations

import torch

from kdc.core.errors import ModelError


def same_shape(student: torch.Tensor, teacher: torch.Tensor) -> None:
    """Raises: ModelError where the two differ."""
    if student.shape != teacher.shape:
        raise ModelError(
            f"student's features are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: expected one shape",
            do="pair layers of one shape, or project the student's features to the teacher's channels",
        )


def same_batch(student: torch.Tensor, teacher: torch.Tensor, at_least: int = 1) -> None:
    """Raises: ModelError where the numbers of examples differ, or are too few to be compared with each other."""
    if len(student) != len(teacher) or len(student) < at_least:
        raise ModelError(
            f"student's features are of {len(student)} examples, the teacher's of {len(teacher)}: "
            f"expected one number, {at_least} or more",
            do="set a larger training.batch" if len(student) == len(teacher) else "give both models the same inputs",
        )


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is where that is wider: squares of float16 pass 65504 already at 256."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scaled(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in `wide` numbers, each example divided by its largest size, for functions that do not see a scale.

    Such a function's gradient is that of its undivided form although the divisor counts as a constant: what the divisor
    would add is the derivative along the scale, which is nothing.
    """
    tensor = wide(tensor)
    largest = tensor.detach().flatten(1).abs().amax(1)
    return tensor / torch.where(largest > 0, largest, 1.0).reshape(-1, *[1] * (tensor.dim() - 1))


def directions(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Vectors of length 1 along a dimension; a vector of zeros stays one, and its gradient is finite."""
    tensor = scaled(tensor)
    squared = tensor.square().sum(dim, keepdim=True)
    return tensor / torch.where(squared > 1e-24, squared.clamp_min(1e-24).sqrt(), 1.0)
