"""What a file takes by its graph alone: weights in it and beside it, and the peak of its activations."""

from __future__ import annotations

import math

import onnx_ir
from pydantic import BaseModel, Field

from kdc.core.errors import ModelError
from kdc.core.spec import DeviceFile
from kdc.numerics.liveness import Peak, activation_peak
from targets.parts import described_by
from targets.runtime import Runtime
from targets.skips import onnx_files


class OnPaper(BaseModel, frozen=True, extra="forbid"):
    """Bytes by the graph, of all stages where the file is a cascade; nothing here was measured.

    A runtime reads the weights in the file into memory of its own, and can map those beside it: pages that no run
    touches then take none.
    """

    files_bytes: int = Field(description="of everything that loading reads")
    weights_inside_bytes: int
    weights_beside_bytes: int
    activations_bytes: int | None = Field(description="None where a shape cannot be inferred")
    activations_at: str | None = Field(description="the node at which they are the most, as `Conv 'name'`")


def on_paper(file: DeviceFile, runtime: Runtime) -> OnPaper:
    """Estimate a file's memory; see `kdc.numerics.liveness` for the model. Weights are not loaded.

    Of a cascade's stages, which run one after the other, the dearest counts. A file of a runtime's own format whose graph is
    not known tells its size alone.
    """
    inside = beside = 0
    peaks: list[Peak | None] = []
    parts, graphs = runtime.files(file), described_by(file, runtime)
    for path in onnx_files(graphs) if graphs else ():
        model = onnx_ir.load(path)
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if isinstance(tensor, onnx_ir.ExternalTensor):
                    beside += _bytes(tensor)
                elif tensor is not None:
                    inside += _bytes(tensor)
        try:
            peaks.append(activation_peak(model))
        except ModelError:
            peaks.append(None)
    known = [peak for peak in peaks if peak is not None]
    largest = max(known, key=lambda peak: peak.bytes) if len(known) == len(peaks) and known else None
    return OnPaper(
        files_bytes=sum(path.stat().st_size for path in parts),
        weights_inside_bytes=inside,
        weights_beside_bytes=beside,
        activations_bytes=None if largest is None else largest.bytes,
        activations_at=None if largest is None or largest.at is None else f"{largest.at[0]} {largest.at[1]!r}",
    )


def _bytes(tensor: onnx_ir.TensorProtocol) -> int:
    sizes = [size for size in tensor.shape if isinstance(size, int)]
    return 0 if tensor.dtype == onnx_ir.DataType.STRING else math.ceil(math.prod(sizes) * tensor.dtype.itemsize)


def sentence(found: OnPaper) -> str:
    """One line for a person; 1 MB is 10^6 bytes."""
    beside = f", {found.weights_beside_bytes / 1e6:.4g} MB beside it" if found.weights_beside_bytes else ""
    weights = f"weights {found.weights_inside_bytes / 1e6:.4g} MB in the file{beside}"
    if found.activations_bytes is None:
        return f"by the graph: {weights}; activations: a shape is not known"
    at = f" at {found.activations_at}" if found.activations_at else ""
    return f"by the graph: {weights}; activations {found.activations_bytes / 1e6:.4g} MB{at}"
