"""A target device as a value: its runtime, its limits, and the number formats that are fast there."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class QuantizationScheme(BaseModel, frozen=True, extra="forbid"):
    """The integer format that the device's kernels are fast in. Weights are always symmetric int8 (zero point 0)."""

    activations: Literal["uint8", "int8"]
    symmetric_activations: bool
    per_channel: bool
    int32_bias: bool = Field(description="the bias stands as DequantizeLinear of int32 (else it stays float)")
    source: str


class Device(BaseModel, frozen=True, extra="forbid"):
    """A frozen profile. Every number has its source beside it; what is unknown is absent."""

    name: str
    summary: str
    runtime: str
    threads: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    opset: int = Field(ge=18)
    quantization: QuantizationScheme | None = None
    channel_alignment: int = Field(default=1, ge=1, description="kept channels are a multiple of this")
    alignment_source: str = ""
    memory_mb: float | None = None
    unsupported_operators: tuple[str, ...] = Field(default=(), description="ONNX operators that the runtime refuses")
    address: str | None = Field(
        default=None,
        description="ssh://user@host[:port] or adb://serial, where it is measured; this machine where absent",
    )
    emulated: bool = Field(default=False, description="its processor is emulated: its times can satisfy no budget")
