"""A model's classifier, and what it takes: the features on which a second head can stand while the model learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.distill.kinds import from_predictions
from kdc.distill.objectives.shapes import wide


def refuse_predictions_alone(context: Context, kind: str) -> None:
    """Raises: ModelError where the teacher tells what it predicts and nothing else (`predict_only = True` on its module)."""
    if getattr(context.teacher, "predict_only", False):
        raise ModelError(
            f"{kind} needs the teacher's inner layers, and this teacher gives its predictions alone",
            do=f"take objectives that need no more: {', '.join(from_predictions())}",
        )


def outputs_of(model: nn.Module, context: Context, kind: str) -> int:
    """How many outputs a classifier has, by what it makes of two examples in evaluation mode.

    Raises: ModelError where its outputs are not [batch, classes].
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(*(tensor[:2] for tensor in context.data.calibration.inputs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if outputs.dim() != 2:
        raise ModelError(
            f"{kind} needs a classifier, outputs [batch, classes]; {type(model).__name__} gives {tuple(outputs.shape)}",
            do="leave this objective out for this task",
        )
    return int(outputs.shape[1])


def classifier(model: nn.Module, classes: int, kind: str) -> nn.Module:
    """The last linear layer, or 1x1 convolution, with one output a class.

    Raises: ModelError where the model has none.
    """
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            return module
        if isinstance(module, nn.Conv2d) and module.out_channels == classes and module.kernel_size == (1, 1):
            return module
    raise ModelError(
        f"{kind} found no linear layer with {classes} outputs in {type(model).__name__}",
        do="leave this objective out: it needs a classifier that is one linear layer behind a pooling",
    )


class HeadTap:
    """What a model's classifier was given by the last forward: [batch, width], the mean over positions where it is a map."""

    def __init__(self, model: nn.Module, context: Context, kind: str) -> None:
        self.head = classifier(model, outputs_of(model, context, kind), kind)
        self._given: torch.Tensor | None = None
        self._handle = self.head.register_forward_pre_hook(self._keep)

    @property
    def width(self) -> int:
        """How many numbers the classifier takes."""
        return int(self.weight.shape[1])

    @property
    def weight(self) -> torch.Tensor:
        """The classifier's, [classes, width]."""
        assert isinstance(self.head.weight, torch.Tensor)
        return self.head.weight.flatten(1)

    @property
    def features(self) -> torch.Tensor:
        """Of the last forward."""
        assert self._given is not None
        given = wide(self._given)
        return given.flatten(2).mean(2) if isinstance(self.head, nn.Conv2d) else given

    def _keep(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._given = inputs[0]

    def close(self) -> None:
        """Take the hook off again, and let go of the last features."""
        self._handle.remove()
        self._given = None
