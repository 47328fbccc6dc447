"""The value that flows: one model at one point of its way from teacher to device file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import onnx_ir
import torch
from pydantic import BaseModel
from torch import nn

from kdc.core.origins import Origins
from kdc.core.spec import DeviceFile, TensorSpec

M_co = TypeVar("M_co", covariant=True)


class Step(BaseModel, frozen=True, extra="forbid"):
    """One pass as it was run: enough to replay it, and what it cost."""

    kind: str
    version: int
    settings: dict[str, Any]
    decision: dict[str, Any]
    seed: int
    seconds: float = 0.0


Model = nn.Module | onnx_ir.Model | DeviceFile


def example(spec: TensorSpec, batch: int = 1) -> torch.Tensor:
    """Zeros of a spec's shape and type, with `batch` in place of every free size."""
    shape = [size if isinstance(size, int) else batch for size in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


@dataclass(frozen=True)
class Artifact(Generic[M_co]):
    """One model at one point of its way from teacher to device file.

    `inputs` stand in call order. `lineage` is enough to rebuild the model's structure: start from the teacher, replay
    each step's decision, load the weights. `origins` tell which pass last changed each layer (`kdc.core.changed`).
    """

    model: M_co
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lineage: tuple[Step, ...] = ()
    origins: Origins = ()

    def with_model(self, model: Any) -> Artifact[Any]:
        """The same place in the lineage, another model."""
        return replace(self, model=model)

    def with_step(self, step: Step) -> Artifact[M_co]:
        """This model with one more step behind it."""
        return replace(self, lineage=(*self.lineage, step))

    def digest(self) -> str:
        """SHA-256 of all that decides what the model computes: structure and weights."""
        sha = hashlib.sha256()
        for part in _parts(self.model):
            sha.update(part)
        return sha.hexdigest()


def _parts(model: Any) -> Iterator[bytes]:
    if isinstance(model, nn.Module):
        yield str(model).encode()
        for name, tensor in sorted(model.state_dict().items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            # flat first: a contiguous tensor may still have any stride where its size is 1
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(model, onnx_ir.Model):
        yield onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    elif isinstance(model, DeviceFile):
        yield model.path.read_bytes()
    else:
        raise TypeError(f"no digest for a {type(model).__name__}")
