"""An ONNX graph as a torch module that `torch.export` can trace."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdc.core.errors import TargetError
from targets.runtime import first_line, must_exist
from targets.torch_import import elementwise, integers, layers, shapes
from targets.torch_import.host import folded
from targets.torch_import.patterns import join_linears, part_dequantizers
from targets.torch_import.resize import resize
from targets.torch_import.values import OTHERS, Call, Known, Value, settled

OPERATORS: dict[str, Callable[[Call], Any]] = {
    **elementwise.OPERATORS,
    **layers.OPERATORS,
    **shapes.OPERATORS,
    **integers.OPERATORS,
    "Resize": resize,
}
"""What becomes of each ONNX operator: a function of the call, which gives a tensor or as many as the node has outputs."""

CONTROL = frozenset({"If", "Loop", "Scan"})
OLDEST_OPSET = 13
TRIED_BATCH = 2
"""What a free batch is traced with: torch takes 0 and 1 for constants."""


class Step(nn.Module):
    """One node. A module of its own, so that a converter's operators tell which node they were."""

    def __init__(self, node: onnx_ir.Node, opset: int, lift: Callable[[Known], Tensor]) -> None:
        super().__init__()
        self.node, self._opset, self._lift = node, opset, lift

    def forward(self, *values: Value | None) -> tuple[Value, ...]:
        call = Call(self.node, values, self._opset, self._lift)
        fold = folded(call)
        if fold is not None:
            return (Known(settled(fold(call)), self.node.outputs[0].name or ""),)
        found = OPERATORS[self.node.op_type](call)
        return (found,) if isinstance(found, Tensor) else tuple(found)


class OnnxModule(nn.Module):
    """The graph: one tensor for each input in the file's order, a tuple of the outputs in theirs.

    examples: ones for each input, in the sizes that it is traced with; integers may be divisors or indices. Weights are
    its parameters, integers its buffers. free: the names of the sizes that stay free, by (input, axis).
    """

    def __init__(self, model: onnx_ir.Model, examples: Sequence[Tensor], free: dict[tuple[int, int], str]) -> None:
        super().__init__()
        self.examples, self.free = tuple(examples), free
        graph = model.graph
        self.names = [value.name or "" for value in graph.inputs if not value.is_initializer()]
        self.results = [value.name or "" for value in graph.outputs]
        self._known = {name: Known(_array(value), name) for name, value in graph.initializers.items()}
        self._nodes: list[tuple[str, onnx_ir.Node]] = []
        opset = model.opset_imports[""]
        self.steps = nn.ModuleDict()
        for node in graph:
            if node.op_type == "Constant":
                self._known[node.outputs[0].name or ""] = Known(_constant(node), node.outputs[0].name or "")
                continue
            name = _attribute_name(node.name or node.op_type, self.steps)
            self.steps[name] = Step(node, opset, self._lift)
            self._nodes.append((name, node))
        self._lifted: dict[str, str] = {}
        self._open = True
        with torch.no_grad():
            self(*self.examples)  # tells which constants are tensors: these are registered, and stand in the trace
        self._open = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each input; gives a tuple of the outputs."""
        values: dict[str, Value] = {**self._known, **dict(zip(self.names, inputs, strict=True))}
        for name, node in self._nodes:
            given = [None if value is None else values[value.name or ""] for value in node.inputs]
            found = self.steps[name](*given)
            values.update(zip((value.name or "" for value in node.outputs), found, strict=False))
        return tuple(self._tensor(values[name]) for name in self.results)

    def program(self, largest: int = 1024) -> ExportedProgram:
        """What torch.export makes of it. largest: the largest batch, where it is free.

        Raises: TargetError where torch cannot trace it.
        """
        sizes = {name: Dim(re.sub(r"\W", "_", name), min=1, max=largest) for name in set(self.free.values())}
        shapes = tuple(
            {axis: sizes[name] for (index, axis), name in self.free.items() if index == place}
            for place in range(len(self.examples))
        )
        try:
            with torch.no_grad():
                return torch.export.export(
                    self, self.examples, dynamic_shapes=(shapes,) if sizes else None, strict=False
                )
        except TargetError:
            raise
        except Exception as error:  # torch.export raises a dozen types of its own
            raise TargetError(f"torch cannot trace what the ONNX file says: {first_line(error)}") from error

    def _tensor(self, value: Value) -> Tensor:
        return self._lift(value) if isinstance(value, Known) else value

    def _lift(self, value: Known) -> Tensor:
        """The module's own tensor of a known value: floats are parameters, integers and truths are buffers."""
        if value.name not in self._lifted:
            tensor = torch.from_numpy(np.array(value.array))
            if not self._open:
                return tensor  # a free batch kept its node from being folded: the program holds it as a constant
            attribute = _attribute_name(value.name, self)
            if tensor.is_floating_point():
                self.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(attribute, tensor)
            self._lifted[value.name] = attribute
        found: Tensor = getattr(self, self._lifted[value.name])
        return found


def as_module(
    onnx_path: Path, batch: int | None, rewrite: Callable[[onnx_ir.Model], None] = lambda model: None
) -> OnnxModule:
    """An ONNX file as a module.

    Args: batch: what a free first size of an input becomes; None leaves it free. rewrite: what a runtime changes in the
    graph before that, in place; linear layers are joined by then, and each DequantizeLinear has one reader.

    Raises: TargetError where the file is none, another size is free, or an operator is not in the table.
    """
    must_exist(onnx_path)
    try:
        model = onnx_ir.load(onnx_path)
    except Exception as error:  # protobuf's error, or what the reader meets in a file that is something else
        raise TargetError(f"{onnx_path}: is not an ONNX file: {first_line(error)}") from error
    common.InlinePass()(model)
    try:
        _check(model)
        examples, free = _examples(model, batch)
        join_linears(model)
        part_dequantizers(model)
        rewrite(model)
        common.RemoveUnusedNodesPass()(model)
        return OnnxModule(model, examples, free).eval()
    except TargetError as error:
        raise TargetError(f"{onnx_path}: {error}") from error
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise TargetError(f"{onnx_path}: torch cannot compute it: {first_line(error)}", do=OTHERS) from error


def _check(model: onnx_ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise TargetError(
            f"it is written in ONNX opset {opset}, and kdc brings opset {OLDEST_OPSET} and newer into torch",
            do="convert it by onnx.version_converter, or export it again",
        )
    for node in model.graph:
        where = f"operator {node.op_type} ({node.name})"
        if node.op_type in CONTROL:
            raise TargetError(
                f"{where} chooses by data what is computed, and this target's files cannot",
                do="take a target whose runtime has it (cpu-ort), or leave `route` out of the recipe",
            )
        if node.domain not in ("", "ai.onnx") or node.op_type not in {*OPERATORS, "Constant", "Shape", "Size"}:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise TargetError(f"operator {name} ({node.name}) is not among those that kdc brings into torch", do=OTHERS)


def _examples(model: onnx_ir.Model, batch: int | None) -> tuple[list[Tensor], dict[tuple[int, int], str]]:
    """Ones for each input, and the names of the sizes that stay free."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    for value in inputs:
        if value.shape is None or value.dtype is None:
            raise TargetError(f"the input {value.name!r} has no shape or no type", do="export the model with shapes")
    batches = {str(value.shape[0]) for value in inputs if value.shape and not isinstance(value.shape[0], int)}
    examples, free = [], {}
    for index, value in enumerate(inputs):
        assert value.shape is not None
        assert value.dtype is not None
        sizes = []
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and str(size) not in batches:
                raise TargetError(
                    f"the input {value.name!r} has the free size {size}, and this target wants all but the batch fixed",
                    do="export the model with that size fixed",
                )
            if not isinstance(size, int) and batch is None:
                free[index, axis] = str(size)
            sizes.append(size if isinstance(size, int) else batch or TRIED_BATCH)
        if value.dtype not in elementwise.DTYPES:
            raise TargetError(f"the input {value.name!r} is {value.dtype.name}, which torch does not compute with")
        examples.append(torch.ones(sizes, dtype=elementwise.DTYPES[value.dtype]))
    return examples, free


def _array(value: onnx_ir.Value) -> Any:
    tensor = value.const_value
    if tensor is None:
        raise TargetError(f"the initializer {value.name!r} has no numbers")
    if tensor.dtype not in elementwise.DTYPES:
        raise TargetError(f"the constant {value.name!r} is {tensor.dtype.name}, which torch does not compute with")
    return tensor.numpy()


def _constant(node: onnx_ir.Node) -> Any:
    value = onnx_ir.convenience.get_const_tensor(node.outputs[0])
    if value is None:
        raise TargetError(f"operator Constant ({node.name}) has no tensor that kdc reads")
    return value.numpy()


def _attribute_name(name: str, module: nn.Module) -> str:
    """A name that an attribute can have, and that none of the module has yet."""
    plain = re.sub(r"\W", "_", name) or "value"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    found, count = plain, 1
    while hasattr(module, found):
        found, count = f"{plain}_{count}", count + 1
    return found
