"""The full TensorRT: an engine is built on the GPU that it will run on, by timing kernels there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.nvidia import CudaEngine, Parsed, no_driver
from targets.runtime import Engine, Layer, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "tensorrt"


class TensorRt:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".engine"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install 'kdc[tensorrt]'"

    def cannot_run(self, device: Device) -> str | None:
        """Building times kernels on the GPU, and running needs it too."""
        return no_driver()

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Import it; CUDA starts with the first engine."""
        importlib.import_module(NAME)

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
        trt = _package()
        parsed = Parsed(trt, NAME, onnx_path, device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}{self.suffix}"
        path.write_bytes(parsed.engine(trt, device, parsed.builder.create_builder_config(), onnx_path))
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """The network as it was read, with the number format of each layer's outputs."""
        return Parsed(_package(), NAME, onnx_path, device).layers()

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The engine, which holds all weights."""
        must_exist(file.path)
        return (file.path,)

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load an engine that was built for this GPU."""
        must_exist(file.path)
        reason = no_driver()
        if reason is not None:
            raise TargetError(f"{file.path}: cannot be loaded here: {reason}")
        return CudaEngine(_package(), NAME, file.path)


def _package() -> Any:
    return importlib.import_module(NAME)


RUNTIME = TensorRt()
