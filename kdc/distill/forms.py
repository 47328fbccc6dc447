"""A teacher's outputs to bytes and back: the same bytes whether they are kept on a disk or in memory."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch

from kdc.core.errors import ModelError
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.sparse import SparseRows, estimated, pairs, row_type, sparse_rows, spread

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Rebuilt = Literal["estimate", "spread"]
"""Which dense row a sparse one becomes; see `kdc.distill.sparse`."""
_TYPES: dict[str, np.dtype[Any]] = {"exact": np.dtype("<f4"), "half": np.dtype("<f2")}


def row_bytes(form: AnswerForm, shape: tuple[int, ...]) -> int:
    """What one sample's outputs of this shape take. Args: form: as `AnswerForm.of(shape)` gives it."""
    if form.kind == "sparse":
        return math.prod(shape[:-1]) * row_type(form, shape[-1]).itemsize
    return math.prod(shape) * _TYPES[form.kind].itemsize


def encode(outputs: torch.Tensor, form: AnswerForm, generator: torch.Generator, first: int = 0) -> Bytes:
    """Outputs [n, *shape] as bytes [n, row_bytes]. `first`: the first sample's number, as errors call it.

    Raises: ModelError for outputs that are NaN or infinite, or too large for float16.
    """
    bad = ~torch.isfinite(outputs).flatten(1).all(1)
    if bad.any():
        raise ModelError(
            f"the teacher's outputs are NaN or infinite for {int(bad.sum())} of {len(outputs)} samples, "
            f"the first number {first + int(bad.nonzero()[0])} of the training split",
            do="look at the teacher's weights, and at these samples; nothing can be learned from such answers",
        )
    if form.kind == "sparse":
        rows: np.ndarray[Any, Any] = sparse_rows(outputs.reshape(-1, outputs.shape[-1]), form, generator)
    else:
        with np.errstate(over="ignore"):
            rows = outputs.numpy().astype(_TYPES[form.kind])
        if form.kind == "half" and not np.isfinite(rows).all():
            raise ModelError(
                f"the teacher's outputs reach {float(outputs.abs().max()):.3g}, and float16 ends at 65504",
                do="keep them as `exact`",
            )
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(outputs), -1)


def decode(rows: Bytes, form: AnswerForm, shape: tuple[int, ...], rebuilt: Rebuilt = "estimate") -> torch.Tensor:
    """Bytes [n, row_bytes] as outputs, float32 [n, *shape]; of `exact` ones, what was encoded, to the bit."""
    if form.kind == "sparse":
        make = estimated if rebuilt == "estimate" else spread
        return make(_sparse(rows, form, shape), form, shape[-1]).reshape(len(rows), *shape)
    values = rows.view(_TYPES[form.kind]).astype(np.float32, copy=False)
    return torch.from_numpy(values).reshape(len(rows), *shape)


def decode_pairs(rows: Bytes, form: AnswerForm, shape: tuple[int, ...]) -> SparseRows:
    """Sparse rows as classes and weights, [n * positions, top + samples]."""
    return pairs(_sparse(rows, form, shape), form)


def _sparse(rows: Bytes, form: AnswerForm, shape: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.ascontiguousarray(rows).reshape(-1).view(row_type(form, shape[-1]))
