"""TensorRT for RTX: engines are built ahead of time, on any machine, for the profile's compute capabilities.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
"""

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

NAME = "tensorrt-rtx"
PACKAGE = "tensorrt_rtx"


class TensorRtRtx:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".rtx"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(PACKAGE) else "pip install 'kdc[tensorrt-rtx]'"

    def cannot_run(self, device: Device) -> str | None:
        """Engines are built anywhere, and run by a GPU's driver."""
        return no_driver()

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Import it; CUDA starts with the first engine."""
        importlib.import_module(PACKAGE)

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Build an engine for the profile's compute capabilities (where it names none, for those that NVIDIA chooses)."""
        trt = _package()
        parsed = Parsed(trt, NAME, onnx_path, device)
        config = parsed.builder.create_builder_config()
        chosen = [_capability(trt, name, device) for name in device.compute_capabilities]
        if chosen:
            config.num_compute_capabilities = len(chosen)
            for index, capability in enumerate(chosen):
                config.set_compute_capability(capability, index)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}{self.suffix}"
        path.write_bytes(parsed.engine(trt, device, config, onnx_path))
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """The network as it was read, with the number format of each layer's outputs: an engine's needs a driver."""
        return Parsed(_package(), NAME, onnx_path, device).layers()

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The engine, which holds all weights."""
        must_exist(file.path)
        return (file.path,)

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load an engine; the GPU's own kernels are compiled now."""
        must_exist(file.path)
        reason = no_driver()
        if reason is not None:
            raise TargetError(f"{file.path}: cannot be loaded here: {reason}")
        return CudaEngine(_package(), NAME, file.path)


def _package() -> Any:
    return importlib.import_module(PACKAGE)


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
