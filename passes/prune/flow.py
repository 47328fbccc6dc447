"""What is learned while channels are followed through a graph, and the little that every operator's rule needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from passes.prune.labels import Array, Dims, Labels

FREE_SIZES = (1_000_003, 1_000_033, 1_000_037, 1_000_039)
"""Primes that stand for sizes which are free (the batch), so that reshapes are plain arithmetic."""

Axis = tuple[str, int]
"""One dimension of one parameter or buffer: its name and the dimension's number."""

Rule = Callable[["Flow", Node], Dims | list[Dims]]


@dataclass(frozen=True)
class MacTerm:
    """Multiply-accumulates of one product for one sample: `factor` times how many indices each of `dims` keeps.

    `layer` names the weight that takes part in it, or the operator where both factors are activations.
    """

    layer: str
    factor: int
    dims: tuple[Array, ...]


@dataclass(frozen=True)
class Fold:
    """The batch norm that directly follows a layer: the names of its scale (None: 1) and variance, and its epsilon."""

    scale: str | None
    variance: str
    epsilon: float


class Flow:
    """Labels of every tensor of a graph, by node name, and what the layers on the way are.

    `parameters` are the names of the parameters and buffers by the name of their placeholder node.
    """

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self.labels = Labels()
        self.parameters = dict(parameters)
        self.values: dict[str, Dims | list[Dims]] = {}
        self.constants: set[str] = set()  # nodes that depend on parameters alone
        self.axes: dict[Axis, Array] = {}
        self.producers: dict[Axis, None] = {}
        self.readers: dict[Axis, None] = {}
        self.terms: list[MacTerm] = []
        self.blocks: dict[str, tuple[Array, int]] = {}
        self.widths: dict[str, tuple[Array | int, ...]] = {}
        self.folds: dict[str, Fold] = {}
        self.renormalized: dict[str, Array] = {}  # by node: a norm's channels, whose statistics follow those that stay

    def dims(self, node: Any) -> Dims:
        """The labels of a node's tensor; an absent tensor has no dimensions."""
        value = self.values.get(node.name, ()) if isinstance(node, Node) else ()
        return value if isinstance(value, tuple) else ()

    def freeze_node(self, node: Node, reason: str) -> None:
        """Freeze every label of a node's tensors."""
        for dims in _tensors(self.values.get(node.name, ())):
            for labels in dims:
                self.freeze(labels, reason)

    def freeze(self, labels: Array | None, reason: str) -> None:
        """Freeze one dimension, if anything of it could be removed."""
        if labels is not None:
            self.labels.freeze(labels, reason)

    def freeze_all(self, node: Node, reason: str) -> Dims | list[Dims]:
        """The rule for what is not understood: what enters is frozen, and nothing can be removed from what leaves."""
        for source in node.all_input_nodes:
            self.freeze_node(source, reason)
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return (None,) * value.dim()
        if isinstance(value, (list, tuple)):
            return [(None,) * (item.dim() if isinstance(item, torch.Tensor) else 0) for item in value]
        return ()

    def layer(self, weight: Node, out_axis: int, in_axis: int | None) -> str:
        """Note that a layer's weight makes channels along one of its dimensions and reads them along another.

        Returns: the layer's name: its module, or its parameter's full name where that is not called "weight".
        """
        made = self._origin(weight, out_axis)
        if made is not None:
            self.producers[made] = None
        if in_axis is not None:
            read = self._origin(weight, in_axis)
            if read is not None:
                self.readers[read] = None
        return layer_name(made[0]) if made else weight.name

    def multiply(self, layer: str, dims: Iterable[tuple[Array | None, int]]) -> None:
        """Note multiply-accumulates: one for every index of all these dimensions (labels and size for one sample)."""
        dims = list(dims)
        factor = prod(size for labels, size in dims if labels is None)
        self.terms.append(MacTerm(layer, factor, tuple(labels for labels, _ in dims if labels is not None)))

    def freeze_weights(self, node: Node, labels: Array | None) -> None:
        """Freeze a dimension that an operator sums over, where the sum is of parameters alone.

        Such a sum belongs to the weights (a norm, a singular value): every channel that leaves would change it for all
        that stay. A sum over an activation's channels loses what the removed channels gave, which is what pruning is.
        """
        if all(source.name in self.constants for source in node.all_input_nodes):
            self.freeze(labels, f"{node.name} sums weights over it")

    def owner(self, node: Node, weight: Any = None) -> str:
        """The module that an operator belongs to: its weight's owner where it has one, else by the tracer's stack."""
        if isinstance(weight, Node) and weight.name in self.parameters:
            return self.parameters[weight.name].rpartition(".")[0]
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]).partition("@")[0] if stack else ""

    def set_width(self, module: str, dims: Dims, sizes: tuple[int, ...]) -> None:
        """Note the shape that a norm is told; a module that is called twice must be told one shape."""
        width = tuple(size if labels is None else labels for labels, size in zip(dims, sizes, strict=True))
        for old, new in zip(self.widths.get(module, ()), width, strict=False):
            first, second = (None if isinstance(size, int) else size for size in (old, new))
            self.labels.match(first, second, f"{module} is used twice")
        self.widths[module] = width

    def _origin(self, node: Node, axis: int) -> Axis | None:
        """The parameter's dimension that these labels began in, through operators that work on parameters alone."""
        labels = self.dims(node)[axis]
        if labels is None or node.name not in self.constants:
            return None
        if node.name in self.parameters:
            return self.parameters[node.name], axis
        wanted = self.labels.roots(labels)
        waiting = list(node.all_input_nodes)
        while waiting:
            source = waiting.pop(0)
            waiting.extend(source.all_input_nodes)
            for number, own in enumerate(self.dims(source) if source.name in self.parameters else ()):
                if own is not None and own.shape == wanted.shape and bool((self.labels.roots(own) == wanted).all()):
                    return self.parameters[source.name], number
        return None


def layer_name(parameter: str) -> str:
    """A parameter's layer: "blocks.0.conv1.weight" -> "blocks.0.conv1"; other parameters keep their names."""
    return parameter.removesuffix(".weight")


def sizes(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor; each free size is a prime of its own. () where the node gives no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(_number(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def sizes_of_one(node: Any) -> tuple[int, ...]:
    """The shape of a node's tensor when every free size is 1, as multiply-accumulates of one sample are counted."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(_number(size, (1,)) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def value_of_one(node: Node) -> Any:
    """What a node gives for one sample, without data: tensors on the meta device, numbers for sizes."""
    if node.op == "get_attr":
        module = node.graph.owning_module
        return None if module is None else getattr(module, str(node.target))
    return _of_one(node.meta.get("val"))


def argument(node: Node, name: str) -> Any:
    """An operator's argument by the name that its schema gives it; None where it has none of that name."""
    schema = getattr(node.target, "_schema", None)
    for place, declared in enumerate(schema.arguments if schema is not None else ()):
        if declared.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, declared.default_value)
    return None


def operator(node: Node) -> str:
    """An operator's name: "aten::relu_" -> "relu_"; a Python function goes by its own name."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else getattr(node.target, "__name__", str(node.target))


def _number(size: Any, free: tuple[int, ...] = FREE_SIZES) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    return int(expression.subs(dict(zip(symbols, (free * len(symbols))[: len(symbols)], strict=True))))


def _of_one(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty([_number(size, (1,)) for size in value.shape], dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_of_one(each) for each in value)
    return _number(value, (1,)) if isinstance(value, torch.SymInt) else value


def _tensors(value: Dims | list[Dims]) -> Iterator[Dims]:
    if isinstance(value, tuple):
        yield value
    else:
        yield from value
