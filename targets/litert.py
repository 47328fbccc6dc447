"""LiteRT, which was TensorFlow Lite: a .tflite, converted by litert-torch and run by ai-edge-litert.

The converter takes torch programs: the ONNX file is imported as one, with its QuantizeLinear and DequantizeLinear. It lays
pictures out with their channels last inside the file; what the file takes and gives keeps ONNX's order. Integer kernels
run what stands between a DequantizeLinear at every input and a QuantizeLinear at the output; what has no
QuantizeLinear behind it (the logits' linear layer) is computed in float, and `layers` shows it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.converter import convert
from targets.fixed_batch import fixed_shapes, in_batches
from targets.ports import ports_of, ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Layer, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "litert"


class LiteRtEngine:
    """An interpreter; a batch is run as many samples at a time as the file was built for."""

    def __init__(self, interpreter: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._interpreter = interpreter
        given, taken = interpreter.get_input_details(), interpreter.get_output_details()
        self._ends = [one["index"] for one in given], [one["index"] for one in taken]
        self._batch = int(given[0]["shape"][0])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        return in_batches(self._run, self.inputs, self.outputs, inputs, self._batch, NAME)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        try:
            for index, array in zip(self._ends[0], inputs, strict=True):
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise TargetError(f"litert cannot run the model: {first_line(error)}") from error
        return [self._interpreter.get_tensor(index) for index in self._ends[1]]


class LiteRt:
    """The runtime. The packages are imported where they are needed, for they may be absent."""

    suffix = ".tflite"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed: the converter is asked for by `build`."""
        return None if importlib.util.find_spec("ai_edge_litert") else "pip install 'kdc[litert]'"

    def cannot_run(self, device: Device) -> str | None:
        """It runs wherever it is installed."""
        return None

    def version(self) -> str:
        """The installed version, and that of the converter where it is there."""
        runtime = importlib.metadata.version("ai-edge-litert")
        if not importlib.util.find_spec("litert_torch"):
            return runtime
        return f"{runtime} (litert-torch {importlib.metadata.version('litert-torch')})"

    def prepare(self) -> None:
        """Import it."""
        from ai_edge_litert import interpreter  # noqa: F401

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Convert it for the device's batch, and keep what it takes and gives beside it."""
        import onnx_ir

        written = _converted(onnx_path, device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}{self.suffix}"
        path.write_bytes(written)
        write_ports(onnx_ir.load(onnx_path), onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """The operators in their order, with the number formats of what they give: float32 where one is not in integers."""
        from targets.litert_file import operators

        return operators(_converted(onnx_path, device))

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The model, then what it takes and gives."""
        read_ports(file.path)
        return (file.path, ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it on the CPU, in the device's number of threads."""
        inputs, outputs = read_ports(file.path)
        try:
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_path=str(file.path), num_threads=device.threads)
            interpreter.allocate_tensors()
            return LiteRtEngine(interpreter, inputs, outputs)
        except Exception as error:  # ValueError and RuntimeError, of its C++ too
            raise TargetError(f"{file.path}: litert cannot load it: {first_line(error)}") from error


def _converted(onnx_path: Path, device: Device) -> bytes:
    """The file's bytes.

    Raises: TargetError where it cannot be converted, or takes or gives something else than the ONNX file.
    """
    import onnx_ir

    must_exist(onnx_path)
    if not importlib.util.find_spec("litert_torch"):
        raise TargetError("litert's converter litert-torch is not installed", do="pip install 'kdc[litert]'")
    from targets.litert_file import check

    inputs, outputs = ports_of(onnx_ir.load(onnx_path), onnx_path)
    shapes = fixed_shapes(inputs, outputs, device.batch, onnx_path, NAME)
    with scratch_folder("litert") as scratch:
        path = scratch / "model.tflite"
        command = [sys.executable, "-P", "-m", "targets.litert_convert", str(onnx_path.resolve()), str(path)]
        convert("litert's converter", [*command, str(device.batch)], scratch, onnx_path, [path])
        written = path.read_bytes()
    check(written, [port._replace(shape=shape) for port, shape in zip(inputs, shapes, strict=True)], outputs, onnx_path)
    return written


RUNTIME = LiteRt()
