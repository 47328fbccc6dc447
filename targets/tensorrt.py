"""The full TensorRT: an engine is built on the GPU that it will run on, by timing kernels there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.nvidia import NvidiaRuntime, Parsed, no_driver

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device


class TensorRt(NvidiaRuntime):
    """The runtime."""

    name = package = "tensorrt"
    suffix = ".engine"

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Build an engine for the GPU of this machine.

        Raises: TargetError also where it has none.
        """
        reason = no_driver()
        if reason is not None:
            raise TargetError(
                f"target {device.name}: TensorRT builds on the GPU that the engine is for: {reason}",
                do="build on the device itself, or take a tensorrt-rtx target, which is built ahead of time",
            )
        trt = self.module()
        parsed = Parsed(trt, self.name, onnx_path, device)
        engine = parsed.engine(trt, device, parsed.builder.create_builder_config(), onnx_path)
        return self.write(engine, onnx_path, folder)


RUNTIME = TensorRt()
