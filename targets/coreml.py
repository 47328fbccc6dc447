"""Core ML: an ML program, converted anywhere and run on macOS and iOS alone.

coremltools converts the torch program that the ONNX file is imported as, and writes a package, which is a folder. What
kdc keeps is that folder in a .zip (`unzip model.zip` gives model.mlpackage), for a target's file is moved, hashed and
copied as one. The archive of a package is the same, byte for byte, each time: names that coremltools draws by chance are
replaced.

Most machines that convert cannot run what they wrote. So it is read back from the written files and held against the ONNX
file: what it takes and gives, the number formats, and every integer weight (`targets/coreml_check.py`). That its operations
compute what they should is tested by a reference interpreter (`tests/targets/mil.py`).

Float32 programs compute on the CPU and the GPU; the Neural Engine takes float16 alone, so that is a property of the profile.
Source: https://apple.github.io/coremltools/docs-guides/source/typed-execution.html
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.core.scratch import lasting_folder, scratch_folder
from targets.fixed_batch import fixed_shapes, in_batches
from targets.ports import ports_of, ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Layer, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "coreml"
PACKAGE = Path("model.mlpackage")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_@]*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a .zip can name
_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


class CoreMlEngine:
    """A loaded program; a batch is run as many samples at a time as it was built for."""

    def __init__(self, model: Any, folder: Path, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._model, self._folder = model, folder
        described = model.get_spec().description
        self._names = [one.name for one in described.input], [one.name for one in described.output]
        self._batch = int(described.input[0].type.multiArrayType.shape[0])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        return in_batches(self._run, self.inputs, self.outputs, inputs, self._batch, NAME)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        named = dict(zip(self._names[0], inputs, strict=True))
        try:
            found = self._model.predict(named)
        except Exception as error:
            raise TargetError(f"coreml cannot run the model: {first_line(error)}") from error
        return [found[name].astype(port.dtype) for name, port in zip(self._names[1], self.outputs, strict=True)]

    def __del__(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class CoreMl:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".zip"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec("coremltools") else "pip install 'kdc[coreml]'"

    def cannot_run(self, device: Device) -> str | None:
        """Anywhere but on macOS."""
        system = platform.system()
        return None if system == "Darwin" else f"Core ML is a part of macOS and iOS, and this machine has {system}"

    def version(self) -> str:
        """The installed version of the converter."""
        return importlib.metadata.version("coremltools")

    def prepare(self) -> None:
        """Import it."""
        from targets.coreml_package import quiet

        with quiet():
            import coremltools  # noqa: F401

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Convert it for the device's batch, check what was written, and keep what it takes and gives beside it."""
        import onnx_ir

        must_exist(onnx_path)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}.zip"
        with scratch_folder("coreml") as scratch:
            package = _converted(onnx_path, scratch, device)
            _packed(package, path)
        write_ports(onnx_ir.load(onnx_path), onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """The operations of the program, without its constants, and the number formats of what they give."""
        from targets.coreml_package import read_program

        must_exist(onnx_path)
        with scratch_folder("coreml") as scratch:
            program = read_program(_converted(onnx_path, scratch, device))
        return tuple(
            Layer(one.outputs[0].name, one.kind, tuple(port.dtype for port in one.outputs))
            for one in program.operations
            if one.kind != "const"
        )

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The package in its archive, then what it takes and gives."""
        read_ports(file.path)
        return (file.path, ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it on the profile's compute units, on macOS.

        Raises: TargetError off macOS too, with the reason.
        """
        inputs, outputs = read_ports(file.path)
        reason = self.cannot_run(device)
        if reason is not None:
            raise TargetError(f"{file.path}: cannot be loaded here: {reason}")
        import coremltools

        units = _units(device)
        folder = lasting_folder("coreml")
        try:
            with zipfile.ZipFile(file.path) as archive:
                archive.extractall(folder)
            model = coremltools.models.MLModel(str(folder / PACKAGE), compute_units=coremltools.ComputeUnit[units])
            return CoreMlEngine(model, folder, inputs, outputs)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise TargetError(f"{file.path}: coreml cannot load it: {first_line(error)}") from error


def _units(device: Device) -> str:
    """The compute units that the profile names, as coremltools does; all where it names none."""
    name = device.providers[0] if device.providers else _UNITS[0]
    if name not in _UNITS:
        raise TargetError(f"target {device.name}: Core ML has no compute units {name!r}; it has {', '.join(_UNITS)}")
    return name


def _converted(onnx_path: Path, scratch: Path, device: Device) -> Path:
    """The package of an ONNX file, checked, in the folder `scratch`."""
    import onnx_ir

    from targets.coreml_check import check
    from targets.coreml_package import read_program

    model = onnx_ir.load(onnx_path)
    inputs, outputs = ports_of(model, onnx_path)
    shapes = fixed_shapes(inputs, outputs, device.batch, onnx_path, NAME)
    inputs = tuple(port._replace(shape=shape) for port, shape in zip(_named(inputs, "in"), shapes, strict=True))
    outputs = _named(outputs, "out")
    package = scratch / PACKAGE
    try:
        _convert(onnx_path, inputs, outputs, device).save(str(package))
    except TargetError:
        raise
    except Exception as error:  # the converter's many kinds
        raise TargetError(f"{onnx_path}: coreml cannot take it: {first_line(error)}") from error
    check(read_program(package), model, inputs, outputs, device.floats, onnx_path)
    return package


def _convert(onnx_path: Path, inputs: Sequence[Port], outputs: Sequence[Port], device: Device) -> Any:
    """coremltools' model."""
    from targets.coreml_package import quiet
    from targets.torch_import.module import as_module

    module = as_module(onnx_path, device.batch)

    with quiet():
        import coremltools

        def ends(ports: Sequence[Port]) -> list[Any]:
            return [coremltools.TensorType(name=port.name, dtype=np.dtype(port.dtype).type) for port in ports]

        return coremltools.convert(
            module.program().run_decompositions({}),
            convert_to="mlprogram",
            inputs=ends(inputs),
            outputs=ends(outputs),
            minimum_deployment_target=coremltools.target.iOS17,  # the first that has integers between operations
            compute_precision=coremltools.precision[device.floats.upper()],
            skip_model_load=True,
        )


def _named(ports: Sequence[Port], end: str) -> tuple[Port, ...]:
    """The ports under names that a program can have: their own where they are such, else numbers."""
    own = [port.name for port in ports]
    if all(_IDENTIFIER.fullmatch(name) for name in own):
        return tuple(ports)
    return tuple(port._replace(name=f"{end}_{index}") for index, port in enumerate(ports))


def _packed(package: Path, path: Path) -> None:
    """Put a package into an archive that is the same each time: no times, and names drawn by chance replaced."""
    manifest = package / "Manifest.json"
    held = manifest.read_text()
    for name, entry in json.loads(held)["itemInfoEntries"].items():
        held = held.replace(name, str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper())
    manifest.write_text(json.dumps(json.loads(held), indent=1, sort_keys=True) + "\n")
    with zipfile.ZipFile(path, "w") as archive:
        for part in sorted(one for one in package.rglob("*") if one.is_file()):
            info = zipfile.ZipInfo((PACKAGE / part.relative_to(package)).as_posix(), _EPOCH)
            archive.writestr(info, part.read_bytes())


RUNTIME = CoreMl()
