"""What a file costs before it runs: its bytes, parameters and multiply-accumulates; and the hash it is known by."""

from __future__ import annotations

import onnx_ir

from kdc.core.spec import DeviceFile
from kdc.numerics.cost import count
from targets.parts import described_by, identity
from targets.runtime import Runtime
from targets.skips import onnx_files


def cost_of(file: DeviceFile, runtime: Runtime) -> tuple[str, int, int | None, int | None]:
    """SHA-256 and bytes of all that is loaded; parameters and multiply-accumulates, where the graph is known."""
    sha256, size = identity(file, runtime)
    described = described_by(file, runtime)
    if not described:
        return sha256, size, None, None
    counts = [count(onnx_ir.load(path)) for path in onnx_files(described)]
    parameters, macs = (sum(each) for each in zip(*counts, strict=True))
    return sha256, size, parameters, macs
