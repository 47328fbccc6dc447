"""The laws: what must hold of every step, whatever the pass. A pass claims, the driver checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.data import Splits
from kdc.core.errors import LawError
from kdc.core.spec import TensorSpec

Array = np.ndarray[Any, Any]

# Of the outputs' own size. float32 sums in another order differ by about 1e-6; float16 rounds each value by up to 5e-4.
FLOAT_TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
INTEGER_DECISIONS = 0.002  # the share of samples that integer rounding may send to another exit than torch's
INTEGER_TOLERANCE_POINTS = 0.5  # of the task's metric; rounding ties fall differently in a runtime's integer kernels


def same_interface(step: str, before: Artifact[Any], after: Artifact[Any]) -> None:
    """A step leaves the names, shapes and types of inputs and outputs as they were.

    It may fix the batch or free it again (an `If` decides for a batch of one) and give further outputs behind the others.
    """
    kept = after.outputs[: len(before.outputs)]
    pairs = [*zip(before.inputs, after.inputs, strict=False), *zip(before.outputs, kept, strict=False)]
    sizes = (len(before.inputs), len(before.outputs)) == (len(after.inputs), len(kept))
    if not sizes or not all(_fits(was, now) for was, now in pairs):
        raise LawError(f"{step}: inputs and outputs were {before.inputs} -> {before.outputs}, "
                       f"now {after.inputs} -> {after.outputs}")  # fmt: skip


def _fits(was: TensorSpec, now: TensorSpec) -> bool:
    """Whether `now` is `was`, but for a first size that is free in one of them."""
    free = any(isinstance(size, str) for spec in (was, now) for size in spec.shape[:1])
    shapes = [spec.shape[1:] if free else spec.shape for spec in (was, now)]
    return (was.name, was.dtype, len(was.shape), shapes[0]) == (now.name, now.dtype, len(now.shape), shapes[1])


def untouched(step: str, digest: str, artifact: Artifact[Any]) -> None:
    """`decide` and `apply` leave the artifact they were given as it was."""
    if artifact.digest() != digest:
        raise LawError(f"{step}: the incoming model was changed while the step decided and applied its decision")


def same_samples(step: str, digest: str, data: Splits) -> None:
    """A step leaves the samples as they were: a model's forward may write into what it is given."""
    if data.digest() != digest:
        raise LawError(
            f"{step}: the samples were changed in memory while the step ran: a model's forward() wrote into its inputs"
        )


def finite(step: str, model: nn.Module, probe: tuple[torch.Tensor, ...]) -> None:
    """Weights and outputs on a probe batch are finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise LawError(f"{step}: the weight {name} holds a value that is not finite")
    with torch.no_grad():
        output = model(*probe)
    if not torch.isfinite(output).all():
        raise LawError(f"{step}: the model gives a value that is not finite on the calibration split")


def same_structure(step: str, first: nn.Module, second: nn.Module) -> None:
    """Two replays of one decision give the same names, shapes and types."""
    a, b = (
        {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
        for model in (first, second)
    )
    if a != b or str(first) != str(second):
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        raise LawError(f"{step}: a replay of its decision gave another structure; first difference {differing[:3]}")


def same_decisions(step: str, taken: Mapping[str, Array | None], floating: bool) -> int:
    """Torch, the file and the staged files send every sample to the same exit; the two files in any number format.

    Args: taken: [n] each, by "torch", "file" and "stages".
    Returns: how many samples torch decides otherwise (integer kernels round ties otherwise, which can move a confidence
        that lies at its threshold).
    """
    if taken["file"] is None or taken["stages"] is None or taken["torch"] is None:
        raise LawError(f"{step}: an exported form of the cascade does not tell which exit was taken")
    forms = int(np.sum(taken["file"] != taken["stages"]))
    if forms:
        raise LawError(f"{step}: the file with If and the staged files send {forms} samples to different exits")
    differing = int(np.sum(taken["torch"] != taken["file"]))
    allowed = 0 if floating else int(INTEGER_DECISIONS * len(taken["torch"]))
    if differing > allowed:
        raise LawError(f"{step}: torch and the exported file send {differing} samples to different exits")
    return differing


def parity(
    step: str, torch_outputs: Array, exported: Array, floating: bool, points: Sequence[float], floats: str = "float32"
) -> float:
    """The exported file agrees with torch: float outputs within tolerance, integer ones on the task's metric.

    Args: torch_outputs, exported: [n, ...] on the same samples. points: the metric of the two. floats: the format
    that the target holds unquantized values in.
    Returns: the largest absolute difference over the outputs' root mean square.
    """
    size = float(np.sqrt(np.mean(np.square(torch_outputs)))) or 1.0
    error = float(np.abs(torch_outputs - exported).max()) / size
    if floating and error > FLOAT_TOLERANCE[floats]:
        raise LawError(f"{step}: the exported file differs from torch by {error:.2g} of the outputs' size "
                       f"(tolerance {FLOAT_TOLERANCE[floats]:g})")  # fmt: skip
    if abs(points[0] - points[1]) > INTEGER_TOLERANCE_POINTS:
        raise LawError(
            f"{step}: torch scores {points[0]:.2f} and the exported file {points[1]:.2f} on the same samples"
        )
    return error
