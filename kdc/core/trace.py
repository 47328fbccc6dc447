"""One way to see a model's graph: `torch.export`, with a free batch size, in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from kdc.core.artifact import example
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec

TRACE_BATCH = 2  # torch.export bakes sizes 0 and 1 into the graph


def trace(model: nn.Module, inputs: Sequence[TensorSpec]) -> ExportedProgram:
    """The model's graph of ATen operators; its parameters keep their names. The model's mode is left as it was.

    Raises: ModelError where the model cannot be traced (control flow on values, a fixed batch size).
    """
    free = {size: Dim(size, min=1) for spec in inputs for size in spec.shape if isinstance(size, str)}
    shapes = tuple({axis: free[size] for axis, size in enumerate(s.shape) if isinstance(size, str)} for s in inputs)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own advice to its developers
            return torch.export.export(
                model, tuple(example(spec, TRACE_BATCH) for spec in inputs), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # torch.export raises what the model raised, and a dozen types of its own
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"the model cannot be traced by torch.export: {type(error).__name__}: {reason[0] if reason else ''}",
            do="make forward() free of Python control flow on tensor values and of a fixed batch size",
        ) from error
    finally:
        model.train(training)
