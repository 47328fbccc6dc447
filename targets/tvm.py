"""TVM: its compiler makes a shared library of the ONNX file, weights inside, for the processor that compiles it.

The library is native code: it runs on processors of that kind, and is not tuned (tuning takes hours, and is not done here).
What TVM compiles is linked by the system's C compiler, which TVM does not bring.

Loading takes TVM's runtime alone, 5 MB of its 310. Two habits of TVM's are turned off: it would load torch, to exchange
tensors with it, and set the processor cores of the threads that run, which are the measuring process's to choose.

QuantizeLinear and DequantizeLinear are computed as they are defined, in floats: the answers are right, and nothing is
gained, so that its profile has no integer format.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.converter import convert
from targets.ports import ports_of, ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "tvm"
DISTRIBUTION = "apache-tvm"
# In the order in which TVM looks for one.
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"
_BIG_CORES = 1  # TVM's first argument for its threads: which cores it prefers, where it may choose


class TvmEngine:
    """A compiled model in TVM's virtual machine, whose function `main` takes and gives tensors."""

    def __init__(self, machine: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._main = machine["main"]
        self._machine = machine  # it owns the function's memory
        self._tensors: list[Any] = []
        self._shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        for port, array in zip(self.inputs, inputs, strict=True):
            if str(array.dtype) != port.dtype:  # TVM's copy would cast in silence
                raise TargetError(f"tvm cannot run the model: {port.name} takes {port.dtype}, got {array.dtype}")
        try:
            found = self._main(*self._copied(inputs))
            outputs = [found] if hasattr(found, "numpy") else [found[index] for index in range(len(self.outputs))]
            return [output.numpy() for output in outputs]
        except Exception as error:  # TVM's errors share no base of their own
            raise TargetError(f"tvm cannot run the model: {first_line(error)}") from error

    def _copied(self, inputs: Sequence[Array]) -> list[Any]:
        """The arrays in memory of TVM's, for its kernels read at addresses that are multiples of 64."""
        shapes = [array.shape for array in inputs]
        if shapes != self._shapes:
            empty = _tvm().runtime.empty
            self._tensors = [empty(array.shape, str(array.dtype)) for array in inputs]
            self._shapes = shapes
        for tensor, array in zip(self._tensors, inputs, strict=True):
            tensor.copyfrom(array)
        return self._tensors


class Tvm:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".so"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install 'kdc[tvm]'"

    def cannot_run(self, device: Device) -> str | None:
        """It runs wherever it is installed."""
        return None

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(DISTRIBUTION)

    def prepare(self) -> None:
        """Import its runtime, and make a tensor, so that its allocator is there."""
        _tvm().runtime.empty((1,), "float32")

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Compile it for this machine's processor, and keep what it takes and gives beside it.

        Raises: TargetError also where there is no C compiler, or the device is another kind of processor.
        """
        import onnx_ir

        must_exist(onnx_path)
        if device.architecture not in ("", platform.machine()):
            raise TargetError(
                f"target {device.name}: kdc has tvm compile for the processor that it runs on, {platform.machine()}, and "
                f"the target is {device.architecture}",
                do="build the file there",
            )
        if _compiler() is None:
            raise TargetError(
                f"{onnx_path}: tvm links what it compiled by a C compiler, and finds none of {', '.join(_COMPILERS)}",
                do="install gcc or clang, or name another in the environment variable CC",
            )
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / f"{onnx_path.stem}.so").resolve()
        model = onnx_ir.load(onnx_path)
        ports_of(model, onnx_path)
        path.unlink(missing_ok=True)  # a new file: this process may have the old one in its memory
        script = str(Path(__file__).with_name("tvm_compile.py"))
        command = [sys.executable, "-P", script, str(onnx_path.resolve()), str(path)]
        convert("TVM's compiler", command, folder, onnx_path, [path])
        write_ports(model, onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The library, then what it takes and gives."""
        read_ports(file.path)
        return (file.path, ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it on the CPU, in the device's number of threads."""
        inputs, outputs = read_ports(file.path)
        tvm = _tvm()
        try:
            tvm.get_global_func("runtime.config_threadpool")(_BIG_CORES, device.threads)
            with scratch_folder("tvm") as folder:
                library = tvm.runtime.load_module(str(_loadable(file.path.resolve(), folder)))
            return TvmEngine(tvm.runtime.vm.VirtualMachine(library, tvm.cpu()), inputs, outputs)
        except Exception as error:  # TVM's errors share no base of their own
            raise TargetError(f"{file.path}: tvm cannot load it: {first_line(error)}") from error


_loaded: dict[Path, tuple[int, int, int]] = {}
"""What lay at each path that this process loaded from: the file's number, its time and its size."""


def _loadable(path: Path, folder: Path) -> Path:
    """The path itself, or a copy in `folder` where another library was loaded from this path before.

    For a path that it knows, the system's loader gives the library that lay there first.
    """
    found = path.stat()
    now = (found.st_ino, found.st_mtime_ns, found.st_size)
    if _loaded.setdefault(path, now) == now:
        return path
    return Path(shutil.copyfile(path, folder / path.name))


def _compiler() -> str | None:
    """The C compiler that TVM will take, as TVM finds it."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    return named or next((name for name in _COMPILERS if shutil.which(name)), None)


@cache
def _tvm() -> Any:
    """TVM with its runtime library alone; it finds no torch, unless that is loaded already."""
    os.environ["TVM_BIND_THREADS"] = "0"  # read as its threads start
    before = os.environ.get(_RUNTIME_ONLY)
    os.environ[_RUNTIME_ONLY] = "1"
    hook, hidden = sys.excepthook, "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm
        import tvm.runtime.vm
    finally:
        sys.excepthook = hook  # TVM sets one that ends all child processes
        if hidden:
            del sys.modules["torch"]
        if before is None:
            del os.environ[_RUNTIME_ONLY]
        else:
            os.environ[_RUNTIME_ONLY] = before
    return tvm


RUNTIME = Tvm()
