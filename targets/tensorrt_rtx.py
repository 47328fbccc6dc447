"""TensorRT for RTX: engines are built ahead of time, on any machine, for the profile's compute capabilities.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.nvidia import NvidiaRuntime, Parsed

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device


class TensorRtRtx(NvidiaRuntime):
    """The runtime."""

    name = "tensorrt-rtx"
    package = "tensorrt_rtx"
    suffix = ".rtx"

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Build an engine for the profile's compute capabilities (where it names none, for those that NVIDIA chooses)."""
        trt = self.module()
        parsed = Parsed(trt, self.name, onnx_path, device)
        config = parsed.builder.create_builder_config()
        chosen = [_capability(trt, name, device) for name in device.compute_capabilities]
        if chosen:
            config.num_compute_capabilities = len(chosen)
            for index, capability in enumerate(chosen):
                config.set_compute_capability(capability, index)
        return self.write(parsed.engine(trt, device, config, onnx_path), onnx_path, folder)


def _capability(trt: Any, name: str, device: Device) -> Any:
    """A compute capability by the name that NVIDIA's documents give it, such as 8.6."""
    known = {
        key[2:-1] + "." + key[-1]: value
        for key, value in trt.ComputeCapability.__members__.items()
        if key[2:].isdigit()
    }
    if name not in known:
        raise TargetError(
            f"target {device.name}: tensorrt-rtx builds for no compute capability {name!r}",
            do=f"it builds for {', '.join(sorted(known, key=float))}",
        )
    return known[name]


RUNTIME = TensorRtRtx()
