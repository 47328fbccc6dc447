"""OpenVINO: the model is built to its own format, an .xml with the weights in a .bin beside it.

OpenVINO reads ONNX too. The built form is what ships, because a device then needs no reader of ONNX, loads faster, and
runs the graph that was checked here whatever a later release's reader makes of the ONNX file.

Weights are written as they are (`compress_to_fp16` would round floats), and the CPU is told to compute in float32: on
processors with bfloat16 units it takes bfloat16 by itself, 6e-4 off. Integers come with the graph's QuantizeLinear and
DequantizeLinear.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.runtime import Array, Engine, Layer, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "openvino"


class OpenVinoEngine:
    """A model compiled for the device's batch; for batches of another size a second one is compiled when one comes."""

    def __init__(self, model: Any, place: str, settings: dict[str, Any], batch: int) -> None:
        self.inputs = tuple(_port(port) for port in model.inputs)
        self.outputs = tuple(_port(port) for port in model.outputs)
        self._place, self._settings = place, settings
        self._free = model.clone()
        shapes = {port.name: [batch, *port.shape[1:]] for port in self.inputs if _free_batch(port)}
        if shapes:
            # kernels for one known shape are what an application ships, and are faster than those for any
            model.reshape(shapes)
        self._timed = tuple((batch if _free_batch(port) else port.shape[0], *port.shape[1:]) for port in self.inputs)
        self._request = self._compiled(model)
        self._others: dict[tuple[int, ...], Any] = {}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        try:
            timed = tuple(array.shape for array in inputs) == self._timed
            request = self._request if timed else self._other(inputs)
            found = request.infer(list(inputs), share_inputs=True)
        except Exception as error:  # openvino's errors are RuntimeErrors and numpy's
            raise TargetError(f"openvino cannot run the model: {first_line(error)}") from error
        return [found[index] for index in range(len(self.outputs))]

    def _other(self, inputs: Sequence[Array]) -> Any:
        """What runs arrays of these sizes; the NPU has no free sizes, and gets a model for each batch."""
        batches = tuple(len(array) for array in inputs) if self._place == "NPU" else ()
        if batches not in self._others:
            model = self._free.clone()
            if batches:
                model.reshape({p.name: [size, *p.shape[1:]] for p, size in zip(self.inputs, batches, strict=True)})
            self._others = {batches: self._compiled(model)}
        return self._others[batches]

    def _compiled(self, model: Any) -> Any:
        return _core().compile_model(model, self._place, self._settings).create_infer_request()


class OpenVino:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".xml"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install 'kdc[openvino]'"

    def cannot_run(self, device: Device) -> str | None:
        """Where OpenVINO sees no such processor."""
        there, place = self.providers(), _place(device)
        if any(name.split(".")[0] == place for name in there):
            return None
        return f"openvino finds no {place} on this machine; it finds {', '.join(there) or 'nothing'}"

    def providers(self) -> tuple[str, ...]:
        """The processors that it finds on this machine."""
        return tuple(_core().available_devices)

    def side_by_side(self, device: Device) -> bool:
        """On the CPU alone: requests of several compiled models are independent, and leave Python free while they run."""
        return _place(device) == "CPU"

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Compile and run the smallest model, so that its plugins are loaded."""
        import numpy as np
        import openvino
        from openvino import opset13

        x = opset13.parameter([1], np.float32, "x")
        compiled = _core().compile_model(openvino.Model([opset13.relu(x)], [x], "smallest"), "CPU")
        compiled.create_infer_request().infer([np.zeros(1, np.float32)])

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Write the graph as .xml and its weights as .bin, floats as they are."""
        import openvino

        must_exist(onnx_path)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}.xml"
        try:
            openvino.save_model(_core().read_model(onnx_path), path, compress_to_fp16=False)
        except Exception as error:
            raise TargetError(f"{onnx_path}: openvino cannot take it: {first_line(error)}") from error
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """What was compiled: fused layers in their order of execution, with the number format of their outputs."""
        must_exist(onnx_path)
        try:
            model = _core().read_model(onnx_path)
            compiled = _core().compile_model(model, _place(device), _settings(device)).get_runtime_model()
        except Exception as error:
            raise TargetError(f"{onnx_path}: openvino cannot take it: {first_line(error)}") from error
        return tuple(
            Layer(node.get_friendly_name(), _info(node, "layerType"), tuple(_info(node, "outputPrecisions").split(",")))
            for node in compiled.get_ordered_ops()
        )

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The graph, then its weights."""
        parts = (file.path, file.path.with_suffix(".bin"))
        for path in parts:
            must_exist(path)
        return parts

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Compile it for one request at a time, in the device's number of threads, in float32 where it is float."""
        self.files(file)
        try:
            return OpenVinoEngine(_core().read_model(file.path), _place(device), _settings(device), device.batch)
        except Exception as error:
            raise TargetError(f"{file.path}: openvino cannot load it: {first_line(error)}") from error


def _place(device: Device) -> str:
    return device.providers[0] if device.providers else "CPU"


def _settings(device: Device) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    place = _place(device)
    if place != "NPU":  # which computes in float16 and integers alone
        settings["INFERENCE_PRECISION_HINT"] = "f16" if device.floats == "float16" else "f32"
    if place == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": device.threads, "NUM_STREAMS": 1}
    return settings


def _info(node: Any, key: str) -> str:
    """What the compiled graph says of a node."""
    info = node.get_rt_info()
    return str(info[key].value) if key in info else "-"


def _free_batch(port: Port) -> bool:
    return bool(port.shape) and isinstance(port.shape[0], str)


def _port(port: Any) -> Port:
    shape = tuple(
        size.get_length() if size.is_static else f"size_{axis}" for axis, size in enumerate(port.get_partial_shape())
    )
    return Port(port.get_any_name(), shape, str(port.get_element_type().to_dtype()))


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


RUNTIME = OpenVino()
