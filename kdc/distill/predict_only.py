"""Teachers that can only be asked: no layers to look into, no gradients, loaded when first asked and let go on request."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from kdc.core.errors import ModelError

Array = np.ndarray[Any, Any]
_ERRORS = 3  # onnxruntime's log severity


class PredictOnly(nn.Module):
    """A teacher without parameters. `digest` names its answers, and is known before it is loaded."""

    predict_only = True

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest

    @abstractmethod
    def release(self) -> None:
        """Let go of all that takes memory; the next question loads it again."""

    def require(self, batches: Iterable[Sequence[torch.Tensor]]) -> None:
        """See whether it may be asked about all these inputs. Raises: ModelError where a budget does not suffice."""


class Apart(PredictOnly):
    """A module that is in memory only between its first question and `release`."""

    def __init__(self, digest: str, load: Callable[[], nn.Module]) -> None:
        super().__init__(digest)
        self._load = load
        self._loaded: list[nn.Module] = []  # in a list, so that it is no part of this module

    @torch.no_grad()
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if not self._loaded:
            self._loaded.append(self._load())
        outputs: torch.Tensor = self._loaded[0](*inputs)
        return outputs

    def release(self) -> None:
        self._loaded.clear()


def asked_only(teacher: nn.Module) -> list[PredictOnly]:
    """Those of a teacher, or of several that are one module, that can only be asked."""
    return [part for part in teacher.modules() if isinstance(part, PredictOnly)]


def torchscript(path: Path) -> nn.Module:
    """The module in a TorchScript file, in evaluation mode.

    Raises: ModelError where it is no such file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format; files of it are still about
            loaded: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} cannot be read as a TorchScript file: {reason}", do="save it with torch.jit.save(scripted, path)"
        ) from error
    return loaded.eval()


class OnnxTeacher(PredictOnly):
    """An ONNX file in ONNX Runtime on the CPU; its first output, as float32."""

    def __init__(self, digest: str, path: Path) -> None:
        super().__init__(digest)
        self.path = path
        self._session: Any = None

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Raises: ModelError where the file cannot be loaded, or does not take these inputs."""
        if self._session is None:
            self._session = self._started()
        takes = self._session.get_inputs()
        if len(takes) != len(inputs):
            raise ModelError(
                f"{self.path} takes {len(takes)} inputs ({', '.join(port.name for port in takes)}); "
                f"the data have {len(inputs)}",
                do="export the teacher with the data's inputs, in their order",
            )
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in inputs]
        fixed = next((port.shape[0] for port in takes if port.shape and isinstance(port.shape[0], int)), None)
        if fixed is None:
            return torch.from_numpy(self._run(arrays)).float()
        return torch.from_numpy(self._in_parts(arrays, fixed)).float()

    def release(self) -> None:
        self._session = None

    def _in_parts(self, arrays: list[Array], size: int) -> Array:
        """A file of a fixed batch gets so many at a time; the last part is filled up with its last sample."""
        outputs = []
        for start in range(0, len(arrays[0]), size):
            part = [array[start : start + size] for array in arrays]
            count = len(part[0])
            full = [np.concatenate([p, np.repeat(p[-1:], size - count, 0)]) for p in part]
            outputs.append(self._run(full)[:count])
        return np.concatenate(outputs)

    def _run(self, arrays: list[Array]) -> Array:
        feed = {port.name: array for port, array in zip(self._session.get_inputs(), arrays, strict=True)}
        try:
            output: Array = self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise ModelError(
                f"{self.path} cannot be run on the data's inputs: {str(error).splitlines()[0]}",
                do="make the data's inputs fit the file's, in shape and dtype",
            ) from error
        return output

    def _started(self) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise ModelError(
                f"{self.path}: onnxruntime cannot load it: {str(error).splitlines()[0]}",
                do="check the file with `kdc profile`, or export it again",
            ) from error
