"""Which layers are quantized, and the grid of every tensor, from the calibration split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.contract import Context
from kdc.core.errors import ModelError, TargetError
from kdc.core.observe import Note, Progress
from kdc.numerics.affine import affine_of_range
from passes.quantize.calibrate import ranges, spread
from passes.quantize.graph import plain_graph
from passes.quantize.placement import candidates, place

if TYPE_CHECKING:
    from passes.quantize import Quantize, Ranges

GRAPH_TOLERANCE = 1e-3  # of the outputs' own size: folding BatchNorm rounds otherwise


def decide(settings: Quantize, artifact: Artifact[nn.Module], context: Context) -> Ranges:
    """As `Quantize.decide`."""
    from passes.quantize import Grid, Ranges

    scheme = context.device.quantization
    if scheme is None:
        raise TargetError(
            f"{context.step}: target {context.device.name!r} has no integer format that is fast",
            do="take `quantize` out of the passes",
        )
    graph = plain_graph(artifact.model, artifact.inputs)
    samples = spread(context.data.calibration, settings.samples)
    _same_outputs(artifact.model, graph, samples.inputs, context.step)
    found = candidates(graph)
    unknown = [name for name in settings.keep_float if name not in found]
    if unknown:
        raise ModelError(
            f"{context.step}: keep_float names {unknown}, which the model does not have",
            do=f"its layers are {', '.join(found)}",
        )
    layers = tuple(name for name in found if name not in settings.keep_float)
    if not layers:
        context.emit(Note(f"{context.step}: no layer can be quantized; the model stays float"))
    groups = place(graph, layers, linear_outputs=scheme.linear_outputs).groups
    measured = ranges(
        graph,
        groups,
        samples,
        settings.calibration,
        settings.percentile,
        scheme,
        lambda done, total: context.emit(Progress(f"{context.step}: calibration", done, total, "samples")),
    )
    activations = {}
    for name, (low, high) in measured.items():
        grid = affine_of_range(low, high, scheme.activations, symmetric=scheme.symmetric_activations)
        activations[name] = Grid(scale=grid.scale, zero_point=grid.zero_point)
    return Ranges(layers=layers, activations=activations, scheme=scheme, weights=settings.weights)


@torch.no_grad()
def _same_outputs(model: nn.Module, graph: nn.Module, inputs: tuple[torch.Tensor, ...], step: str) -> None:
    training = model.training
    few = tuple(tensor[:16] for tensor in inputs)
    before = model.eval()(*few)
    model.train(training)
    after = graph(*few)
    error = float((before - after).abs().max() / before.square().mean().sqrt().clamp_min(1e-12))
    if not error <= GRAPH_TOLERANCE:
        raise ModelError(
            f"{step}: the model's traced graph differs from the model by {error:.2g} of its outputs' size",
            do="make forward() free of in-place changes to tensors that are read again, and of branches on values",
        )
