"""What a target's runtime loads: a value of the standard library alone, for the device that measures has no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DeviceFile:
    """What the target's runtime loads: a file, and what the runtime keeps beside it (`Runtime.files`)."""

    path: Path
    runtime: str
    graph: Path | None = None
    """The ONNX file that it was built from, where that is another one and is known: costs are counted there."""
