"""What a device file is made of: its graph, the hash of all that is loaded, and how it moves; and a file made ready."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdc.core.device import Device
from kdc.core.scratch import lasting_folder
from kdc.core.spec import DeviceFile
from targets.cascade import is_cascade
from targets.door.admit import admit
from targets.runtime import Runtime, running


def described_by(file: DeviceFile, runtime: Runtime) -> tuple[Path, ...]:
    """The ONNX files that tell of a file's graph: what it was built from, or its own parts where they are ONNX.

    Empty where a runtime's own format is all there is: its parameters, MACs and branches are then unknown.
    """
    if file.graph is not None:
        return (file.graph,)
    return runtime.files(file) if runtime.suffix == ".onnx" else ()


def sha256_of_parts(file: DeviceFile, runtime: Runtime) -> str:
    """SHA-256 over all that is loaded, for a graph may be the same where only the weights beside it differ."""
    sha = hashlib.sha256()
    for path in runtime.files(file):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def identity(file: DeviceFile, runtime: Runtime) -> tuple[str, int]:
    """SHA-256 and bytes of all that is loaded."""
    return sha256_of_parts(file, runtime), sum(path.stat().st_size for path in runtime.files(file))


def renamed(file: DeviceFile, runtime: Runtime, stem: str) -> dict[str, Path]:
    """A new name for each part, the file itself first, so that they still find each other; where each lies now."""
    old = file.path.stem
    found = {}
    for path in runtime.files(file):
        ends = path.name.removeprefix(old)
        found[stem + ends if ends.startswith(".") and ends != path.name else path.name] = path
    return found


def move(file: DeviceFile, runtime: Runtime, folder: Path) -> DeviceFile:
    """Move a file with all its parts, and the graph it was built from, into a folder that is made."""
    folder.mkdir(parents=True)
    parts = runtime.files(file)
    graph = file.graph
    for path in dict.fromkeys((*parts, *(() if graph is None else (graph,)))):
        path.rename(folder / path.name)
    return DeviceFile(folder / file.path.name, file.runtime, None if graph is None else folder / graph.name)


def remove(file: DeviceFile, runtime: Runtime) -> None:
    """Delete a file with all its parts, and the graph it was built from."""
    for path in (*runtime.files(file), *(() if file.graph is None else (file.graph,))):
        path.unlink(missing_ok=True)


def ready(path: Path, device: Device) -> DeviceFile:
    """What the device's runtime loads, to be timed: a file of its own format as it is, an ONNX file built to it.

    What is built lies in a folder of this process's own that is gone when it ends.

    Raises: TargetError where the runtime is absent, cannot have this model, or its files cannot be run here.
    """
    runtime = running(device)
    if path.suffix == ".onnx" or is_cascade(path):
        admit(path)
    elif runtime.suffix == ".onnx":
        runtime.files(DeviceFile(path, device.runtime))  # whatever its name is: its weights must lie beside it
    if path.suffix != ".onnx" or runtime.suffix == ".onnx":
        return DeviceFile(path, device.runtime)
    return runtime.build(path, lasting_folder("ready"), device)
