"""The seam to what runs models on a device: a Runtime builds and loads files, an Engine runs batches.

Nothing here imports torch or pydantic: the processes that measure load only numpy and the runtime, and on a remote
device there may be no more.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.emulation import architecture
from targets.proc import cpu_features

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

Array = NDArray[Any]


class Port(NamedTuple):
    """One input or output of an engine; `shape` has a name where a size is free, `dtype` is numpy's name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Layer(NamedTuple):
    """One layer of what a runtime made of a model; `formats` are its outputs' number formats, in the runtime's words."""

    name: str
    kind: str
    formats: tuple[str, ...]


class Placed(NamedTuple):
    """How many nodes of one operator one execution provider has."""

    provider: str
    operator: str
    nodes: int


class Engine(Protocol):
    """A loaded model."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes, in call order."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it gives, in order."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order.

        Raises: TargetError where the runtime refuses them.
        """


class Runtime(Protocol):
    """What turns an ONNX file into the device's own, and loads that."""

    @property
    def suffix(self) -> str:
        """How its files end: ".onnx" where it loads ONNX itself."""

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""

    def cannot_run(self, device: Device) -> str | None:
        """Why this machine cannot run the device's files, though it may build them; None where it can."""

    def version(self) -> str:
        """The installed version."""

    def prepare(self) -> None:
        """Import it and start all that any model needs, so that what follows is the model's own cost."""

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Turn an ONNX file into the file that ships, in `folder`.

        Raises: TargetError where the device cannot have this model.
        """

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """All files that loading this one reads: itself first, then weights kept beside it.

        Their names begin with the file's own stem, unless it names them inside: they can be renamed together.
        """

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load a built file.

        Raises: TargetError where the file is not there or cannot be loaded.
        """


@runtime_checkable
class Inspects(Protocol):
    """A runtime that tells what it makes of a model."""

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """Its layers, in their order. Raises: TargetError where it cannot take the model."""


@runtime_checkable
class Places(Protocol):
    """A runtime that shares a model's nodes out among several execution providers, and tells which got which."""

    def placement(self, file: DeviceFile, device: Device) -> tuple[Placed, ...]:
        """Where the nodes of a file are, by provider and operator, most first; empty where the runtime cannot tell.

        Raises: TargetError as `Runtime.load`.
        """


@runtime_checkable
class Offers(Protocol):
    """A runtime that computes by one of several providers, or on one of several devices."""

    def providers(self) -> tuple[str, ...]:
        """Those that its installed build has, or finds on this machine: what a profile's `providers` may name here."""


@runtime_checkable
class FallsBack(Protocol):
    """A runtime that leaves what its fast kernels lack to general ones, which are slower, and tells so."""

    def fallbacks(self, file: DeviceFile) -> tuple[str, ...]:
        """What of a built file its fast kernels do not run: the operator of each such call, in the runtime's words."""


@runtime_checkable
class SideBySide(Protocol):
    """A runtime whose engines of one file may run in several threads of one process, and let Python go on meanwhile."""

    def side_by_side(self, device: Device) -> bool:
        """Whether those of this device do: where they run on the CPU alone."""


_HALF = ("openvino", "tensorrt-rtx", "tensorrt", "coreml")

NONE = "none"
"""The runtime of a profile that has limits alone."""

_MODULES = {
    "onnxruntime": "targets.onnxruntime",
    "openvino": "targets.openvino",
    "ncnn": "targets.ncnn",
    "mnn": "targets.mnn",
    "litert": "targets.litert",
    "coreml": "targets.coreml",
    "executorch": "targets.executorch",
    "tensorrt-rtx": "targets.tensorrt_rtx",
    "tvm": "targets.tvm",
    "tensorrt": "targets.tensorrt",
}


def runtime_of(device: Device) -> Runtime:
    """The runtime of a device.

    Raises: TargetError where kdc knows no such runtime, or it is not installed; the message has the command.
    """
    if device.runtime == NONE:
        raise TargetError(
            f"target {device.name}: kdc has no runtime for it; its profile tells its limits alone",
            do="give these limits as the budget of another target (`kdc targets`)",
        )
    if device.runtime not in _MODULES:
        raise TargetError(
            f"target {device.name}: there is no runtime {device.runtime!r}", do=f"known runtimes: {', '.join(_MODULES)}"
        )
    if device.floats != "float32" and device.runtime not in _HALF:
        raise TargetError(
            f"target {device.name}: kdc runs {device.runtime} in float32 alone, and its profile has {device.floats}",
            do=f"take `floats` out of it, or one of the runtimes {', '.join(_HALF)}",
        )
    # By name, so that this file and the runtimes' files do not import each other.
    runtime = cast(Runtime, importlib.import_module(_MODULES[device.runtime]).RUNTIME)
    command = runtime.missing()
    if command is not None:
        raise TargetError(f"target {device.name}: the runtime {device.runtime} is not installed", do=command)
    return runtime


def version_of(name: str) -> str | None:
    """The installed version of a runtime that kdc knows by this name; None where it knows none, or it is absent."""
    if name not in _MODULES:
        return None
    runtime = cast(Runtime, importlib.import_module(_MODULES[name]).RUNTIME)
    return None if runtime.missing() else runtime.version()


def running(device: Device) -> Runtime:
    """The runtime of a device whose files can be run from this machine.

    One that is reached over a line runs them itself, and says itself where it cannot.

    Raises: TargetError as `runtime_of`, and with the reason where its files cannot be run here.
    """
    runtime = runtime_of(device)
    reason = why_not_here(device, runtime)
    if reason is not None:
        raise TargetError(
            f"target {device.name}: its files cannot be run here: {reason}",
            do="`kdc build` makes the file here; time and check it where it runs",
        )
    return runtime


def why_not_here(device: Device, runtime: Runtime) -> str | None:
    """Why a device's files cannot be run from this machine; None where they can, or are run over a line."""
    if device.address is not None:
        return None
    here = platform.machine()
    if device.architecture and architecture(device.architecture) != architecture(here):
        return f"it is {device.architecture}, and this machine is {here}"
    return _lacks_feature(device) or runtime.cannot_run(device)


def _lacks_feature(device: Device) -> str | None:
    """Which processor feature the device's integers need and this machine lacks."""
    needed = device.quantization.requires_any_feature if device.quantization else ()
    there = cpu_features()
    if not needed or there is None or set(needed) & set(there):
        return None
    return f"its integers are right on a processor with {' or '.join(needed)}, and this one has none of them"


def feeds(
    engine: Engine, samples: Sequence[Array] | None, batch: int, generator: np.random.Generator, limit: int = 256
) -> list[list[Array]]:
    """Batches for an engine, each one array for each input: `batches_for` all of its inputs."""
    return batches_for(engine.inputs, samples, batch, generator, limit)


def batches_for(
    ports: Sequence[Port], samples: Sequence[Array] | None, batch: int, generator: np.random.Generator, limit: int = 256
) -> list[list[Array]]:
    """Batches, each one array for each port, from real samples or else from random numbers.

    A free first size is the batch. Real samples are cast within their kind (float64 to float32), never across it. A port
    of no dimension takes the same number in every batch.

    Args: samples: one array [n, ...] for each port, in call order, or [] for one of no dimension. limit: the most
    batches given.

    Raises: TargetError where the samples do not fit the ports, or another size is free and no sample tells it.
    """
    if samples is None:
        return [[_random(port, batch, generator) for port in ports] for _ in range(4)]
    if len(samples) != len(ports):
        raise TargetError(f"the model takes {len(ports)} inputs, the samples have {len(samples)}")
    columns = [
        [array.astype(port.dtype)] if _is_constant(port, array) else _batches(port, array, batch, limit)
        for port, array in zip(ports, samples, strict=True)
    ]
    count = max((len(column) for column in columns), default=0)
    same = [
        column * count if _is_constant(port, array) else column
        for column, port, array in zip(columns, ports, samples, strict=True)
    ]
    return [list(row) for row in zip(*same, strict=True)]


def _is_constant(port: Port, array: Array) -> bool:
    return port.shape == () and array.ndim == 0 and np.can_cast(array.dtype, port.dtype, "same_kind")


def must_exist(path: Path) -> None:
    """Raises: TargetError where there is no such file."""
    if not path.is_file():
        raise TargetError(f"{path}: there is no such file", do="check the path")


def slow_part(runtime: Runtime, file: DeviceFile) -> str | None:
    """A sentence on what a built file leaves to general kernels; None where there is nothing, or the runtime cannot tell."""
    calls = runtime.fallbacks(file) if isinstance(runtime, FallsBack) else ()
    if not calls:
        return None
    counted = ", ".join(f"{name} ({calls.count(name)})" for name in dict.fromkeys(calls))
    return f"{file.path.name}: left to {file.runtime}'s general kernels, by how often they are called: {counted}"


def first_line(error: Exception) -> str:
    """The first line of what a runtime says, or its error's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _random(port: Port, batch: int, generator: np.random.Generator) -> Array:
    shape = [size if isinstance(size, int) else batch if axis == 0 else 0 for axis, size in enumerate(port.shape)]
    if 0 in shape:
        raise TargetError(
            f"input {port.name!r} has a size that is free, {_show(port)}, and nothing tells it",
            do="give real samples (`--samples inputs.npz`)",
        )
    kind = np.dtype(port.dtype)
    if kind.kind == "f":
        return generator.standard_normal(shape).astype(kind)
    # 0 and 1 are valid as a token, as a mask and as an index of anything that has two
    return generator.integers(0, 2, shape).astype(kind)


def _batches(port: Port, array: Array, batch: int, limit: int) -> list[Array]:
    first = port.shape[0] if port.shape else 1
    size = first if isinstance(first, int) else batch
    fits = array.ndim == len(port.shape) and all(
        isinstance(want, str) or want == got for want, got in zip(port.shape[1:], array.shape[1:], strict=True)
    )
    if not fits or not np.can_cast(array.dtype, port.dtype, "same_kind"):
        raise TargetError(
            f"input {port.name!r} takes {port.dtype} {_show(port)}, the samples are {array.dtype} {list(array.shape)}"
        )
    if len(array) < size:
        raise TargetError(f"input {port.name!r} takes a batch of {size}, there are {len(array)} samples")
    used = array[: min(len(array) // size, limit) * size].astype(port.dtype)
    return [np.ascontiguousarray(used[start : start + size]) for start in range(0, len(used), size)]


def _show(port: Port) -> str:
    return "[" + ", ".join(map(str, port.shape)) + "]"
