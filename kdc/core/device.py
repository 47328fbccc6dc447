"""A target device as a value: its runtime, its limits, and the number formats that are fast there."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class QuantizationScheme(BaseModel, frozen=True, extra="forbid"):
    """The integer format that the device's kernels are fast in. Weights are always symmetric int8 (zero point 0)."""

    activations: Literal["uint8", "int8"]
    symmetric_activations: bool
    per_channel: bool
    weight_bits: Literal[7, 8] = Field(
        default=8,
        description="8: weights in -127..127; 7: in -63..63, so that no sum of two products with 8-bit activations "
        "exceeds 16 bits, where x86 kernels without VNNI saturate",
    )
    int32_bias: bool = Field(description="the bias stands as DequantizeLinear of int32 (else it stays float)")
    linear_outputs: bool = Field(
        default=False,
        description="a linear layer's output is quantized too, as a convolution's is: its integer kernel gives no floats",
    )
    requires_any_feature: tuple[str, ...] = Field(
        default=(),
        description="processor features, as Linux's /proc/cpuinfo names them: integers are right on a processor that has "
        "one of them; empty: on every processor of the target",
    )
    source: str


class Device(BaseModel, frozen=True, extra="forbid"):
    """A frozen profile. Every number has its source beside it; what is unknown is absent."""

    name: str
    summary: str
    runtime: str
    threads: int = Field(ge=1)
    batch: int = Field(default=1, ge=1)
    opset: int = Field(ge=18)
    providers: tuple[str, ...] = Field(
        default=(),
        description="what in the runtime computes: its execution providers or its device, first choice first",
    )
    compute_capabilities: tuple[str, ...] = Field(
        default=(), description="NVIDIA's GPU architectures that an engine is built for, such as 8.6"
    )
    quantization: QuantizationScheme | None = None
    channel_alignment: int = Field(default=1, ge=1, description="kept channels are a multiple of this")
    alignment_source: str = ""
    floats: Literal["float32", "float16"] = Field(default="float32", description="what unquantized values are held in")
    architecture: str = Field(default="", description="the processor's, as `uname -m` names it; empty: this machine's")
    memory_mb: float | None = Field(default=None, description="RAM, 10^6 bytes")
    storage_mb: float | None = Field(default=None, description="flash that the program and the model share, 10^6 bytes")
    memory_source: str = ""
    source: str = Field(default="", description="where the profile's other facts are from")
    unsupported_operators: tuple[str, ...] = Field(default=(), description="ONNX operators that the runtime refuses")
    address: str | None = Field(
        default=None,
        description="ssh://user@host[:port] or adb://serial, where it is measured; this machine where absent",
    )
    emulated: bool = Field(default=False, description="its processor is emulated: its times can satisfy no budget")
