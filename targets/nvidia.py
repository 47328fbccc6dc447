"""What TensorRT and TensorRT-RTX share: one API under two names. Parsing, building, the network's layers, and running.

Both are strongly typed here: floats stay as the ONNX file has them, or become float16 before it is parsed where the
profile says so, and integers come with its QuantizeLinear and DequantizeLinear, which must be symmetric int8 (NVIDIA's
rule but for DLA) and never int32, so that biases stay float.
Running needs a driver, and cuda-python for the device's memory.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.runtime import Array, Engine, Layer, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

MAX_BATCH = 256
"""The most samples of one run that an engine with a free batch is built for: as many as kdc evaluates together."""


def no_driver() -> str | None:
    """Why no GPU of NVIDIA's can be used here; None where one can."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver ({name} is not there)"
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver finds no GPU"
    return None


def logger(trt: Any) -> Any:
    """A logger that keeps errors in `said`, in place of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.said.append(message)

    return Log()


class Parsed:
    """An ONNX file as a network of TensorRT's; what it hangs on is kept alive with it.

    Raises: TargetError with the parser's own words, and the node, where it cannot take the file.
    """

    def __init__(self, trt: Any, name: str, onnx_path: Path, device: Device) -> None:
        must_exist(onnx_path)
        self.log = logger(trt)
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self.network, self.log)
        if device.floats == "float16":
            import onnx

            from targets.half import in_half

            parsed = self._parser.parse(in_half(onnx.load(onnx_path), str(onnx_path)).SerializeToString())
        else:
            parsed = self._parser.parse_from_file(str(onnx_path))
        if not parsed:
            error = self._parser.get_error(0) if self._parser.num_errors else None
            where = "" if error is None else f" at {error.node_operator()} '{error.node_name()}'"
            why = "it gives no reason" if error is None else error.desc()
            raise TargetError(f"{onnx_path}: {name} cannot take it{where}: {why}")

    def layers(self) -> tuple[Layer, ...]:
        """The network's layers in their order, before the builder fuses them."""
        found = (self.network.get_layer(index) for index in range(self.network.num_layers))
        return tuple(
            Layer(
                layer.name,
                layer.type.name,
                tuple(layer.get_output(index).dtype.name for index in range(layer.num_outputs)),
            )
            for layer in found
        )

    def engine(self, trt: Any, device: Device, config: Any, onnx_path: Path) -> bytes:
        """The serialized engine.

        Raises: TargetError with the builder's words where it cannot be built.
        """
        profile = self.builder.create_optimization_profile()
        free = False
        for index in range(self.network.num_inputs):
            value = self.network.get_input(index)
            first, *sizes = value.shape
            if -1 in sizes:
                raise TargetError(
                    f"{onnx_path}: the input {value.name!r} is {[first, *sizes]}, and only its first size may be free",
                    do="export the model with fixed sizes, but for the batch",
                )
            if first == -1:
                free = True
                most = max(MAX_BATCH, device.batch)
                profile.set_shape(value.name, (1, *sizes), (device.batch, *sizes), (most, *sizes))
        if free:
            config.add_optimization_profile(profile)
        built = self.builder.build_serialized_network(self.network, config)
        if built is None:
            raise TargetError(f"{onnx_path}: no engine could be built: {'; '.join(self.log.said[-3:]) or 'no reason'}")
        return bytes(built)


class NvidiaRuntime:
    """What the two have in common but for how an engine is built. The package is imported where it is needed."""

    name: str
    package: str
    suffix: str

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(self.package) else f"pip install 'kdc[{self.name}]'"

    def cannot_run(self, device: Device) -> str | None:
        """Engines are run by a GPU's driver."""
        return no_driver()

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(self.name)

    def prepare(self) -> None:
        """Import it; CUDA starts with the first engine."""
        self.module()

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """The network as it was read, with the number format of each layer's outputs: an engine's needs a driver."""
        return Parsed(self.module(), self.name, onnx_path, device).layers()

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The engine, which holds all weights."""
        must_exist(file.path)
        return (file.path,)

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load an engine. The full TensorRT's was built on this GPU; for TensorRT-RTX's, kernels are compiled now."""
        must_exist(file.path)
        reason = no_driver()
        if reason is not None:
            raise TargetError(f"{file.path}: cannot be loaded here: {reason}")
        return CudaEngine(self.module(), self.name, file.path)

    def module(self) -> Any:
        """The package."""
        return importlib.import_module(self.package)

    def write(self, engine: bytes, onnx_path: Path, folder: Path) -> DeviceFile:
        """The file of an engine that was built."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}{self.suffix}"
        path.write_bytes(engine)
        return DeviceFile(path, self.name, onnx_path)


class CudaEngine:
    """An engine with a stream and device memory of its own; arrays are copied in and out by every run.

    Raises: TargetError where the engine cannot be used on this GPU, or cuda-python is absent.
    """

    def __init__(self, trt: Any, name: str, path: Path) -> None:
        try:
            from cuda.bindings import runtime as cuda
        except ImportError as error:
            raise TargetError(
                f"{name} needs cuda-python to run engines", do=f"pip install 'kdc[{name}]' cuda-python"
            ) from error
        self._cuda, self._name, self._trt = cuda, name, trt
        self._log = logger(trt)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            why = first_line(RuntimeError("\n".join(self._log.said[:1])))
            raise TargetError(f"{path}: {name} cannot load it on this GPU: {why}")
        self._context = self._engine.create_execution_context()
        self._stream = self._ok(cuda.cudaStreamCreate())
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        ins = [one for one in names if self._engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
        self.inputs = tuple(self._port(one) for one in ins)
        self.outputs = tuple(self._port(one) for one in names if one not in ins)
        self._memory: dict[str, tuple[int, int]] = {}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        import numpy as np

        kinds = self._cuda.cudaMemcpyKind
        kept = [np.ascontiguousarray(array) for array in inputs]
        for port, array in zip(self.inputs, kept, strict=True):
            if str(array.dtype) != port.dtype or not self._context.set_input_shape(port.name, array.shape):
                takes = f"{port.dtype} {list(port.shape)}"
                raise TargetError(
                    f"{self._name} cannot run the model: {port.name} takes {takes}, got {array.dtype} "
                    f"{list(array.shape)}"
                )
            place = self._place(port.name, array.nbytes)
            to_device = kinds.cudaMemcpyHostToDevice
            self._ok(self._cuda.cudaMemcpyAsync(place, array.ctypes.data, array.nbytes, to_device, self._stream))
        found = [np.empty(tuple(self._context.get_tensor_shape(port.name)), port.dtype) for port in self.outputs]
        for port, array in zip(self.outputs, found, strict=True):
            self._place(port.name, array.nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise TargetError(f"{self._name} cannot run the model: {'; '.join(self._log.said[-1:]) or 'no reason'}")
        for port, array in zip(self.outputs, found, strict=True):
            place = self._place(port.name, array.nbytes)
            to_host = kinds.cudaMemcpyDeviceToHost
            self._ok(self._cuda.cudaMemcpyAsync(array.ctypes.data, place, array.nbytes, to_host, self._stream))
        self._ok(self._cuda.cudaStreamSynchronize(self._stream))
        return found

    def _place(self, name: str, size: int) -> int:
        """Device memory for a tensor: what it has, where that is large enough."""
        address, there = self._memory.get(name, (0, 0))
        if size > there:
            if address:
                self._ok(self._cuda.cudaFree(address))
            address = int(self._ok(self._cuda.cudaMalloc(size)))
            self._memory[name] = address, size
        self._context.set_tensor_address(name, address)
        return address

    def _ok(self, answer: Any) -> Any:
        code, *rest = answer if isinstance(answer, tuple) else (answer,)
        if int(code) != 0:
            raise TargetError(f"{self._name}: CUDA error {code}")
        return rest[0] if rest else None

    def _port(self, name: str) -> Port:
        shape = self._engine.get_tensor_shape(name)
        sizes = tuple(f"size_{axis}" if size == -1 else int(size) for axis, size in enumerate(shape))
        return Port(name, sizes, str(self._trt.nptype(self._engine.get_tensor_dtype(name)).__name__))
