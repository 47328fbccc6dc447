"""ExecuTorch: the ONNX file by way of torch as a .pte, what XNNPACK can run cut out for it.

A .pte holds kernels for one batch, that of the device. Batches of another size are run in parts of that size, the last
filled up; so samples must not see each other, as in every model that kdc compresses.

What XNNPACK does not run is left to ExecuTorch's own kernels, most of them slow: `fallbacks` names these operators.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.fixed_batch import in_batches, is_free
from targets.ports import ports_path, read_ports, write_ports
from targets.runtime import Array, Engine, Layer, Port, first_line, must_exist

if TYPE_CHECKING:  # pydantic's, which a remote device may lack
    from kdc.core.device import Device

NAME = "executorch"


class ExecutorchEngine:
    """A loaded program. batch: what its kernels are made for, where the model's batch is free."""

    def __init__(self, program: Any, inputs: tuple[Port, ...], outputs: tuple[Port, ...], batch: int) -> None:
        self.inputs, self.outputs, self._program, self._batch = inputs, outputs, program, batch

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order; of another size than the program's, part by part."""
        return in_batches(self._once, self.inputs, self.outputs, inputs, self._batch, NAME)

    def _once(self, inputs: Sequence[Array]) -> list[Array]:
        import numpy as np
        import torch

        try:
            # torch warns of arrays that nobody may write into
            tensors = [torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in inputs]
            found = self._program.forward(tensors)
        except Exception as error:  # RuntimeErrors of its own
            raise TargetError(f"executorch cannot run the model: {first_line(error)}") from error
        return [one.numpy() for one in found]


class Executorch:
    """The runtime. The package is imported where it is needed, for it may be absent."""

    suffix = ".pte"

    def missing(self) -> str | None:
        """The command that installs it, or None where it is installed."""
        return None if importlib.util.find_spec(NAME) else "pip install 'kdc[executorch]'"

    def cannot_run(self, device: Device) -> str | None:
        """It runs wherever it is installed."""
        return None

    def version(self) -> str:
        """The installed version."""
        return importlib.metadata.version(NAME)

    def prepare(self) -> None:
        """Import it, with its XNNPACK."""
        _bindings()

    def build(self, onnx_path: Path, folder: Path, device: Device) -> DeviceFile:
        """Make the program for the device's batch, and keep what it takes and gives beside it."""
        import onnx_ir

        program, _ = _lowered(onnx_path, device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{onnx_path.stem}.pte"
        path.write_bytes(program)
        write_ports(onnx_ir.load(onnx_path), onnx_path, path)
        return DeviceFile(path, NAME, onnx_path)

    def layers(self, onnx_path: Path, device: Device) -> tuple[Layer, ...]:
        """Its operators: the kind says whether XNNPACK or one of ExecuTorch's own kernels runs each."""
        return _lowered(onnx_path, device)[1]

    def fallbacks(self, file: DeviceFile) -> tuple[str, ...]:
        """The operators that XNNPACK does not run, as the program itself names them: "aten::native_layer_norm"."""
        must_exist(file.path)
        try:
            with _quiet():
                from executorch.exir._serialize._program import deserialize_pte_binary

                (plan, *_) = deserialize_pte_binary(file.path.read_bytes()).program.execution_plan
        except Exception as error:  # flatbuffers' own, or what the reader meets in a file that is something else
            raise TargetError(f"{file.path}: executorch cannot read it: {first_line(error)}") from error
        calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
        return tuple(plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index"))

    def files(self, file: DeviceFile) -> tuple[Path, ...]:
        """The program, then what it takes and gives."""
        read_ports(file.path)
        return (file.path, ports_path(file.path))

    def load(self, file: DeviceFile, device: Device) -> Engine:
        """Load it, in the device's number of threads, which all programs of this process share."""
        inputs, outputs = read_ports(file.path)
        try:
            bindings = _bindings()
            _set_threads(bindings, device.threads)
            program = bindings._load_for_executorch(str(file.path))
            meta = program.method_meta("forward")
            batches = {meta.input_tensor_meta(i).sizes()[0] for i, port in enumerate(inputs) if is_free(port)}
        except Exception as error:  # RuntimeErrors of its own
            raise TargetError(f"{file.path}: executorch cannot load it: {first_line(error)}") from error
        return ExecutorchEngine(program, inputs, outputs, batches.pop() if batches else device.batch)


def _lowered(onnx_path: Path, device: Device) -> tuple[bytes, tuple[Layer, ...]]:
    """The program's bytes, and whose kernels run what."""
    from targets.torch_import.module import as_module
    from targets.xnnpack import fitted, layers_of

    module = as_module(onnx_path, device.batch, fitted)
    try:
        with _quiet():
            import executorch.kernels.quantized  # its import defines the operators on integers  # noqa: F401
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(module.program(), partitioner=[XnnpackPartitioner()])
            layers = layers_of(edge.exported_program())
            return bytes(edge.to_executorch().buffer), layers
    except TargetError as error:
        raise TargetError(f"{onnx_path}: {error}") from error
    except Exception as error:  # a dozen types of its own and torch's
        raise TargetError(f"{onnx_path}: executorch cannot take it: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Its lowering warns, logs and prints about itself: nothing a user could mend."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _set_threads(bindings: Any, threads: int) -> None:
    """The size of the process's pool, without the lines that its C++ prints on stderr about processors."""
    with Path(os.devnull).open("w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            if bindings._threadpool_get_thread_count() != threads:
                bindings._unsafe_reset_threadpool(threads)
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _bindings() -> Any:
    """The extension module. It hands out and takes torch's tensors, and so brings torch into the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "this API is experimental"
        from executorch.extension.pybindings import portable_lib

    return portable_lib


RUNTIME = Executorch()
