"""ONNX Runtime: what it loads is the ONNX file itself, or those of a cascade's stages.

It runs on its CPU provider, or on the profile's providers in their order. A provider that the installed build lacks, or
that does not start here, is an error: ONNX Runtime itself goes on with the CPU and a line in its log.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.cascade import is_cascade, load_cascade, stage_files
from targets.runtime import Array, Engine, Placed, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "onnxruntime"
CPU = "CPUExecutionProvider"
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
            raise TargetError(f"onnxruntime cannot run the model: {first_line(error)}") from error
        return outputs


class OnnxRuntime:
    """The runtime. The package is imported where a session is made, for it may be absent."""

    suffix = ".onnx"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install onnxruntime"

    def cannot_run(self, device: Device) -> str | None:
        """Which of the profile's providers the installed build does not have."""
        there = self.providers()
        absent = [provider for provider in device.providers if provider not in there]
        if not absent:
            return None
        return f"this build of onnxruntime has no {', '.join(absent)}; it has {', '.join(there)}"

    def providers(self) -> tuple[str, ...]:
        """The execution providers of the installed build."""
        import onnxruntime

        return tuple(onnxruntime.get_available_providers())

    def side_by_side(self, device: Device) -> bool:
        """On the CPU alone: sessions are independent, and leave Python free while they run."""
        return set(device.providers) <= {CPU}

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Make and run the smallest session, so that libraries are loaded and the allocator is there."""
        import numpy as np
        import onnxruntime

        session = onnxruntime.InferenceSession(_SMALLEST, session_options(1), providers=[CPU])
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
        """Load an ONNX file, or all of a cascade, with all optimizations, in the device's number of threads.

        What the profile's providers cannot do runs on the CPU, as ONNX Runtime has it.
        Raises: TargetError also where a provider is absent or does not start.
        """
        if is_cascade(file.path):
            return load_cascade(file.path, lambda stage: self._engine(stage, device), NAME)
        return self._engine(file, device)

    def placement(self, file: DeviceFile, device: Device) -> tuple[Placed, ...]:
        """Which provider has how many nodes of which operator; of a cascade, all stages' together.

        ONNX Runtime tells it from 1.24 on, as it has shared the nodes out: after basic optimizations, such as the folding
        of constants, and before a provider fuses what it got. A node that holds graphs (an If) counts, and so do the
        nodes inside. Source: `Session_GetEpGraphAssignmentInfo` of its C API.
        """
        files = stage_files(file.path)[1:] if is_cascade(file.path) else (file.path,)
        counts: Counter[tuple[str, str]] = Counter()
        for path in files:
            options = session_options(device.threads)
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            session = start_session(path, device, options)
            if not hasattr(session, "get_provider_graph_assignment_info"):
                return ()
            for part in session.get_provider_graph_assignment_info():
                counts.update((part.ep_name, _operator(node)) for node in part.get_nodes())
        return tuple(Placed(*where, count) for where, count in counts.most_common())

    def _engine(self, file: DeviceFile, device: Device) -> OrtEngine:
        return OrtEngine(start_session(file.path, device, session_options(device.threads)))


def start_session(path: Path, device: Device, options: Any) -> Any:
    """An inference session of one ONNX file on the device's providers.

    Raises: TargetError where a provider is absent or does not start, or the file cannot be loaded.
    """
    import onnxruntime

    must_exist(path)
    reason = RUNTIME.cannot_run(device)
    if reason is not None:
        raise TargetError(f"target {device.name}: {reason}", do="choose `providers` among these in the profile")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[*(device.providers or (CPU,))])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise TargetError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error
    idle = [provider for provider in device.providers if provider not in session.get_providers()]
    if idle:
        raise TargetError(f"{path}: onnxruntime could not start {', '.join(idle)} on this machine")
    return session


def session_options(threads: int) -> Any:
    """All optimizations, one operator after another in this many threads, and no log but errors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    return options


def _operator(node: Any) -> str:
    return str(node.op_type) if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _port(argument: Any) -> Port:
    kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else str(size or "?") for size in argument.shape)
    return Port(argument.name, shape, _DTYPES.get(kind, kind))


def _files(path: Path) -> tuple[Path, ...]:
    from targets.door.admit import files_of

    return files_of(path)


RUNTIME = OnnxRuntime()
