"""What stands at a model's ends, and what a runtime loads: readable without torch.

The recipe holds these values, and may not spend seconds on importing torch.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from kdc.core.devicefile import DeviceFile

__all__ = ["DeviceFile", "TensorSpec"]


class TensorSpec(BaseModel, frozen=True, extra="forbid"):
    """What a model takes at one input, or gives at one output."""

    name: str
    shape: tuple[int | str, ...] = Field(description="with a name where the size is free, as in [batch, 1, 28, 28]")
    dtype: str = Field(default="float32", description="numpy's name")
