"""What an operator's function is given: the node, and its inputs as tensors or as numbers known before any data come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray

from kdc.core.errors import TargetError

Array = NDArray[Any]
Size = int | torch.SymInt
OTHERS = "rewrite the model without it, or choose a target that reads ONNX itself (cpu-ort, cpu-openvino)"


@dataclass(frozen=True)
class Known:
    """A value that depends on no data: a weight, a constant, or sizes.

    array: of dtype object where a size is free (torch.SymInt). name: what its tensor is called in the module.
    """

    array: Array
    name: str


Value = torch.Tensor | Known


@dataclass(frozen=True)
class Call:
    """One node, called once.

    opset: of the standard operators. lift: gives the module's own tensor of a known value.
    """

    node: onnx_ir.Node
    values: tuple[Value | None, ...]
    opset: int
    lift: Callable[[Known], torch.Tensor]

    def has(self, index: int) -> bool:
        """Whether the input is given: trailing ones may be left out, others have no name."""
        return index < len(self.values) and self.values[index] is not None

    def tensor(self, index: int) -> torch.Tensor:
        """The input as a tensor, whatever it is. Raises: TargetError where it is a free size."""
        value = self.values[index]
        assert value is not None, f"{self.node.op_type} has no input {index}"
        if isinstance(value, torch.Tensor):
            return value
        if value.array.dtype == object:
            self.refuse("computes with the free batch as with data", "build it for a batch of known size")
        return self.lift(value)

    def tensors(self) -> list[torch.Tensor]:
        """All inputs, as tensors."""
        return [self.tensor(index) for index in range(len(self.values))]

    def known(self, index: int) -> Array:
        """The input's numbers. Raises: TargetError where they are computed from data."""
        value = self.values[index]
        if not isinstance(value, Known):
            self.refuse(f"has input {index} computed from data, where only constants and sizes can stand")
        return value.array

    def is_known(self, index: int) -> bool:
        """Whether the input depends on no data and no free size."""
        value = self.values[index] if index < len(self.values) else None
        return isinstance(value, Known) and value.array.dtype != object

    def numbers(self, index: int) -> list[Any]:
        """The input's numbers as Python's: int, float or torch.SymInt."""
        return list(self.known(index).reshape(-1).tolist())

    def number(self, index: int) -> Any:
        """The input's only number."""
        (number,) = self.numbers(index)
        return number

    def shape(self, index: int) -> tuple[Size, ...]:
        """The input's sizes."""
        value = self.values[index]
        assert value is not None
        return tuple(value.shape if isinstance(value, torch.Tensor) else value.array.shape)

    def constant(self, array: Array, role: str) -> torch.Tensor:
        """A tensor of the module's own, which the node needs beside its inputs. role: names it among the node's."""
        return self.lift(Known(array, f"{self.node.name}.{role}"))

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()

    def real(self, name: str, default: float) -> float:
        """An attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_float()

    def text(self, name: str, default: str) -> str:
        """An attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_string()

    def integers(self, name: str) -> list[int] | None:
        """An attribute; None where it is absent."""
        found = self.node.attributes.get(name)
        return None if found is None else list(found.as_ints())

    def refuse(self, what: str, do: str = OTHERS) -> NoReturn:
        """Raises: TargetError that names the operator and the node."""
        raise TargetError(f"operator {self.node.op_type} ({self.node.name}) {what}", do=do)


def as_sizes(sizes: Sequence[Size]) -> Array:
    """Sizes as an array: of int64, or of objects where one is free."""
    free = any(isinstance(size, torch.SymInt) for size in sizes)
    array = np.empty(len(sizes), object if free else np.int64)
    array[:] = list(sizes)
    return array


def settled(array: Array) -> Array:
    """The same array, of int64 where no free size is left in it."""
    array = np.asarray(array)
    if array.dtype != object or any(isinstance(size, torch.SymInt) for size in array.reshape(-1).tolist()):
        return array
    return array.astype(np.int64)
