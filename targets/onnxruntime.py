"""ONNX Runtime on the CPU: what it loads is the ONNX file itself, or those of a cascade's stages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.cascade import is_cascade, load_cascade, stage_files
from targets.runtime import Array, Engine, Port

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "onnxruntime"
_DTYPES = {"float": "float32", "double": "float64"}  # the others are numpy's names too
_ERROR = 3  # onnxruntime's log severity
# One Identity on float[1], IR version 8, opset 18: the smallest session there is.
_SMALLEST = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201655a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808"
    "0112040a02080142040a001012"
)


class OrtEngine:
    """An inference session as an Engine."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_port(argument) for argument in session.get_inputs())
        self.outputs = tuple(_port(argument) for argument in session.get_outputs())
        self._input_names = [port.name for port in self.inputs]
        self._output_names = [port.name for port in self.outputs]

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order."""
        try:
            outputs: list[Array] = self._session.run(
                self._output_names, dict(zip(self._input_names, inputs, strict=True))
            )
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise TargetError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return outputs


class OnnxRuntime:
    """The runtime. The package is imported where a session is made, for it may be absent."""

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install onnxruntime"

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Make and run the smallest session, so that libraries are loaded and the allocator is there."""
        import numpy as np
        import onnxruntime

        session = onnxruntime.InferenceSession(_SMALLEST, _options(1), providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros(1, np.float32)})

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Copy the ONNX file, and weights kept beside it, into `folder`, where they do not lie there already."""
        folder.mkdir(parents=True, exist_ok=True)
        for source in _files(onnx_path):
            copy = folder / source.relative_to(onnx_path.parent)
            if copy.resolve() != source.resolve():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        return DeviceFile(folder / onnx_path.name, NAME)

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The ONNX file, and the files that its external weights lie in; of a cascade the plan, then every stage's."""
        if is_cascade(file.path):
            plan, *stages = stage_files(file.path)
            return (plan, *(path for stage in stages for path in _files(stage)))
        return _files(file.path)

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load an ONNX file, or all of a cascade, on the CPU with all optimizations, in the device's number of threads."""
        if is_cascade(file.path):
            return load_cascade(file.path, lambda stage: self._session(stage, device), NAME)
        return self._session(file, device)

    def _session(self, file: DeviceFile, device: Device) -> OrtEngine:
        import onnxruntime

        _must_exist(file.path)
        try:
            session = onnxruntime.InferenceSession(
                str(file.path), _options(device.threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise TargetError(f"{file.path}: onnxruntime cannot load it: {_first_line(error)}") from error
        return OrtEngine(session)


def _options(threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return options


def _port(argument: Any) -> Port:
    kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in argument.shape)
    return Port(argument.name, shape, _DTYPES.get(kind, kind))


def _files(path: Path) -> tuple[Path, ...]:
    import onnx_ir

    _must_exist(path)
    try:
        model = onnx_ir.load(path)
    except Exception as error:  # protobuf's error, or what the reader meets in a file that is something else
        raise TargetError(f"{path}: is not an ONNX file: {_first_line(error)}") from error
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    locations = {Path(tensor.location) for tensor in tensors if isinstance(tensor, onnx_ir.ExternalTensor)}
    beside = tuple(path.parent / location for location in sorted(locations))
    for file in beside:
        _must_exist(file)
    return (path, *beside)


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise TargetError(f"{path}: there is no such file", do="check the path")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


RUNTIME = OnnxRuntime()
