"""ncnn: pnnx, ncnn's own converter, makes a .param and a .bin of the ONNX file; float32 only, one sample at a time.

ncnn quantizes by tools of its own and reads no QuantizeLinear, so that its profiles have no integer format. Its graphs have
no batch: every sample of a batch is run by itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.converter import convert
from targets.ports import ports_of, ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Port, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "ncnn"
_INTEGERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


class NcnnEngine:
    """A net, whose inputs and outputs pnnx numbers in their order."""

    def __init__(self, net: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        import ncnn

        self.inputs, self.outputs = inputs, outputs
        self._net, self._mat = net, ncnn.Mat
        self._ends = [f"in{index}" for index in range(len(inputs))], [f"out{index}" for index in range(len(outputs))]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run a batch, sample by sample: one array for each input, in call order."""
        import numpy as np

        for port, array in zip(self.inputs, inputs, strict=True):
            if array.shape[1:] != port.shape[1:] or str(array.dtype) != port.dtype:
                takes = f"{port.dtype} {list(port.shape)}"
                raise TargetError(
                    f"ncnn cannot run the model: {port.name} takes {takes}, got {array.dtype} {list(array.shape)}"
                )
        samples = [
            self._one([np.ascontiguousarray(array[index]) for array in inputs]) for index in range(len(inputs[0]))
        ]
        return [np.stack(column) for column in zip(*samples, strict=True)]

    def _one(self, sample: list[Array]) -> list[Array]:
        import numpy as np

        extractor = self._net.create_extractor()
        for name, array in zip(self._ends[0], sample, strict=True):
            # a copy that ncnn owns: a layer that works in place would write into the caller's array, or outlive it
            extractor.input(name, self._mat(array).clone())
        found = []
        for name, port in zip(self._ends[1], self.outputs, strict=True):
            code, mat = extractor.extract(name)
            if code != 0:
                raise TargetError(f"ncnn cannot run the model: {port.name} could not be computed (code {code})")
            # a copy: the extractor's memory goes with it
            found.append(np.array(mat).reshape([size if isinstance(size, int) else -1 for size in port.shape[1:]]))
        return found


class Ncnn:
    """The runtime. The packages are imported where they are needed, for they may be absent."""

    suffix = ".param"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        there = importlib.util.find_spec(NAME) and importlib.util.find_spec("pnnx")
        return None if there else "pip install 'kdc[ncnn]'"

    def cannot_run(self, device: Device) -> str | None:
        """It runs wherever it is installed."""
        return None

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Import it, and start its threads."""
        import ncnn

        ncnn.Net()

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Convert it for the device's batch, weights in float32, and keep what it takes and gives beside it."""
        import onnx_ir

        must_exist(onnx_path)
        model = onnx_ir.load(onnx_path)
        if _INTEGERS & {node.op_type for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph)}:
            raise TargetError(f"{onnx_path}: ncnn reads no quantized ONNX graphs", do="give the float model")
        inputs, outputs = ports_of(model, onnx_path)
        shapes = [_shape(port, onnx_path) for port in inputs]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}.param"
        with scratch_folder("pnnx") as place:
            names = ("pnnxparam", "pnnxbin", "pnnxpy", "pnnxonnx", "ncnnparam", "ncnnbin", "ncnnpy")
            options = [f"{name}={name}" for name in names]
            command = [_pnnx(), str(onnx_path.resolve()), f"inputshape={','.join(shapes)}", "fp16=0", *options]
            said = convert("pnnx", command, place, onnx_path, [place / "ncnnparam", place / "ncnnbin"])
            problem = _problem(place / "ncnnparam", len(inputs), len(outputs))
            if problem is not None:
                last = [line for line in said.splitlines() if "not supported" in line or "ignore" in line]
                raise TargetError("\n".join([f"{onnx_path}: pnnx cannot convert it for ncnn: {problem}", *last[:5]]))
            path.write_bytes((place / "ncnnparam").read_bytes())
            path.with_suffix(".bin").write_bytes((place / "ncnnbin").read_bytes())
        write_ports(model, onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The graph, its weights, and what it takes and gives."""
        read_ports(file.path)
        must_exist(file.path.with_suffix(".bin"))
        return (file.path, file.path.with_suffix(".bin"), ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it on the CPU, in float32 and the device's number of threads."""
        self.files(file)
        inputs, outputs = read_ports(file.path)
        net = _net(device.threads)
        if net.load_param(str(file.path)) != 0 or net.load_model(str(file.path.with_suffix(".bin"))) != 0:
            raise TargetError(f"{file.path}: ncnn cannot load it, and says why on stderr")
        return NcnnEngine(net, inputs, outputs)


def _net(threads: int) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    # By itself it computes in 16 bits where the processor has them: the file is held to float32.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    return net


def _pnnx() -> str:
    import pnnx

    return str(pnnx.EXEC_PATH)


def _shape(port: Port, path: Path) -> str:
    """An input as pnnx wants it told, the batch as 1.

    Raises: TargetError where ncnn has no such input.
    """
    if port.dtype != "float32":
        raise TargetError(f"{path}: the input {port.name!r} is {port.dtype}, and kdc gives ncnn float32 inputs alone")
    first, *sizes = port.shape or (None,)
    if first is None or (isinstance(first, int) and first != 1) or not all(isinstance(size, int) for size in sizes):
        raise TargetError(
            f"{path}: the input {port.name!r} is {list(port.shape)}, and ncnn takes one sample of fixed size at a time",
            do="export the model with a free batch, or a batch of 1, and all other sizes fixed",
        )
    return f"[{','.join(map(str, [1, *sizes]))}]f32"


def _problem(param: Path, inputs: int, outputs: int) -> str | None:
    """What keeps a converted graph from being run: operators that ncnn does not have, or ends that are missing."""
    lines = [line.split() for line in param.read_text().splitlines()[2:]]
    foreign = sorted({words[0] for words in lines if words and ("." in words[0] or "::" in words[0])})
    if foreign:
        return f"ncnn has no {', '.join(foreign)}"
    if _net(1).load_param(str(param)) != 0:
        return f"ncnn does not load its graph of {', '.join(sorted({words[0] for words in lines if words}))}"
    blobs = {blob for words in lines for blob in words[4:]}
    wanted = {f"in{index}" for index in range(inputs)} | {f"out{index}" for index in range(outputs)}
    lost = sorted(wanted - blobs)
    return f"its graph lacks {', '.join(lost)}" if lost else None


RUNTIME = Ncnn()
