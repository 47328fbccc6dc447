"""What stands at a model's ends, and what a runtime loads: readable without torch.

The recipe and the measuring processes hold these values, and neither may spend seconds on importing torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field


class TensorSpec(BaseModel, frozen=True, extra="forbid"):
    """What a model takes at one input, or gives at one output."""

    name: str
    shape: tuple[int | str, ...] = Field(description="with a name where the size is free, as in [batch, 1, 28, 28]")
    dtype: str = Field(default="float32", description="numpy's name")


@dataclass(frozen=True)
class DeviceFile:
    """What the target's runtime loads: a file, and what the runtime keeps beside it (`Runtime.files`)."""

    path: Path
    runtime: str
    graph: Path | None = None
    """The ONNX file that it was built from, where that is another one and is known: costs are counted there."""
