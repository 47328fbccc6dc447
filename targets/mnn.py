"""MNN: the converter that its wheel brings makes an .mnn of the ONNX file; float32 only.

MNN 3.6 quantizes by a tool of its own. Its converter does not take QuantizeLinear and DequantizeLinear as kdc writes them
(it ends with an exception, or writes a file that does not run), so that its profiles have no integer format.

The converter is called by its extension module. The wheel's own script `mnnconvert` installs a package for telemetry into
whatever Python comes first on the PATH, and is therefore not used.
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
from targets.converter import convert
from targets.ports import ports_of, ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "mnn"
_CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_INTEGERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class MnnEngine:
    """A module of MNN's; its inputs and outputs are in the order of channels that ONNX has."""

    def __init__(self, module: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        import MNN.expr

        self.inputs, self.outputs = inputs, outputs
        self._module, self._expr = module, MNN.expr

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        import numpy as np

        expr = self._expr
        for port, array in zip(self.inputs, inputs, strict=True):
            sizes = zip(port.shape, array.shape, strict=False)
            if array.ndim != len(port.shape) or any(isinstance(want, int) and want != got for want, got in sizes):
                # MNN would print its complaint and give nothing, or read past the array's end
                raise TargetError(
                    f"mnn cannot run the model: {port.name} takes {list(port.shape)}, got {list(array.shape)}"
                )
        variables = [expr.const(np.ascontiguousarray(array), list(array.shape), expr.NCHW) for array in inputs]
        found = self._module.forward(variables)
        if len(found) != len(self.outputs):
            raise TargetError("mnn cannot run the model: it gave no outputs, and says why on stderr")
        return [np.array(expr.convert(one, expr.NCHW).read()) for one in found]


class Mnn:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".mnn"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec("MNN") else "pip install 'kdc[mnn]'"

    def cannot_run(self, device: Device) -> str | None:
        """It runs wherever it is installed."""
        return None

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Import it, and compute something, so that its threads and allocators are there."""
        import MNN.expr
        import numpy as np

        one = MNN.expr.const(np.ones((1, 1), np.float32), [1, 1], MNN.expr.NCHW)
        MNN.expr.matmul(one, one).read()

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Convert it, weights in float32, and keep what it takes and gives beside it."""
        import onnx_ir

        must_exist(onnx_path)
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{onnx_path.stem}.mnn").resolve()
        model = onnx_ir.load(onnx_path)
        if _INTEGERS & {node.op_type for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph)}:
            raise TargetError(f"{onnx_path}: mnn's converter does not take quantized graphs", do="give the float model")
        others = [f"{port.name} is {port.dtype}" for port in ports_of(model, onnx_path)[0] if port.dtype != "float32"]
        if others:
            raise TargetError(f"{onnx_path}: {', '.join(others)}, and kdc gives mnn float32 inputs alone")
        options = ["-f", "ONNX", "--modelFile", str(onnx_path.resolve()), "--MNNModel", str(path), "--bizCode", "kdc"]
        convert("MNN's converter", [sys.executable, "-P", "-c", _CONVERT, *options], folder, onnx_path, [path])
        write_ports(model, onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The model, then what it takes and gives."""
        read_ports(file.path)
        return (file.path, ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it on the CPU, in float32 and the device's number of threads."""
        import MNN.nn

        inputs, outputs = read_ports(file.path)
        try:
            manager = MNN.nn.create_runtime_manager(
                ({"backend": "CPU", "numThread": device.threads, "precision": "high"},)
            )
            names = [port.name for port in inputs], [port.name for port in outputs]
            module = MNN.nn.load_module_from_file(str(file.path), *names, runtime_manager=manager)
        except Exception as error:  # SystemError too
            raise TargetError(f"{file.path}: mnn cannot load it: {first_line(error)}") from error
        return MnnEngine(module, inputs, outputs)


RUNTIME = Mnn()
