"""Which channels of a model live and die together, found on the graph of `torch.export`.

Every index of every dimension of every parameter and activation carries a label. Operators join labels (an addition:
channel i of both sides), pass them (pooling), repeat them (flatten), place them side by side (concat) or freeze them
(an operator that is not understood, the model's inputs and outputs). A class of joined labels is a *unit*: the smallest
part that can be removed. Units that the same layers make form a *group*, in which they compete. The idea of dependency
groups is DepGraph's (Fang et al. 2023, arXiv:2301.12900); labels per index instead of per layer make concats, shuffles
and flattening exact.
"""

from __future__ import annotations

import operator as python
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from kdc.core.artifact import Artifact
from kdc.core.spec import TensorSpec
from kdc.core.trace import trace
from passes.prune.flow import Axis, Flow, Fold, layer_name, operator, sizes
from passes.prune.labels import Array, Dims
from passes.prune.layers import LAYER_RULES
from passes.prune.pointwise import pointwise
from passes.prune.products import count_call
from passes.prune.shapes import SHAPE_RULES

Mask = npt.NDArray[np.bool_]
"""[units]: which are kept."""

FIXED = -1
"""In an array of units: an index that always stays."""

_TRACED: WeakKeyDictionary[nn.Module, tuple[str, tuple[TensorSpec, ...], ChannelGraph]] = WeakKeyDictionary()
"""By model: the digest and the inputs that it was traced with, and its graph. It goes with the model."""


@dataclass(frozen=True)
class Group:
    """Units that the same layers make. `channels[i]` channels of `layers[i]` go with one unit.

    `reason` says why none of them may go; None: prunable.
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    units: tuple[int, ...]
    reason: str | None = None

    @property
    def name(self) -> str:
        """The first of its layers."""
        return self.layers[0]

    @property
    def size(self) -> int:
        """How many units it has."""
        return len(self.units)

    @property
    def prunable(self) -> bool:
        """Whether units may be removed."""
        return self.reason is None


@dataclass(frozen=True)
class Seen:
    """One operator of the trace, as it will be compared with the trace of a pruned model.

    `constant`: it depends on parameters alone; `renormalized`: the channels that a norm takes its statistics over.
    """

    operator: str
    dims: tuple[tuple[Array | int, ...], ...]
    numbers: tuple[float, ...]
    constant: bool = False
    renormalized: Array | None = None


@dataclass(frozen=True)
class ChannelGraph:
    """The units and groups of one model. Arrays of units hold, for each index of a dimension, its unit or FIXED.

    `axes`: by parameter and dimension; `layers`: where each layer makes its channels; `readers`: dimensions of weights
    that read channels; `terms`: multiply-accumulates as (layer, factor, dimensions); `blocks`: modules that lose whole
    groups, with their channels and the width of a group; `widths`: the shapes that norms are told; `folds`: the batch
    norm behind a weight; `seen`: what the operators of `program`, the trace, make of them.
    """

    groups: tuple[Group, ...]
    units: int
    axes: Mapping[Axis, Array]
    layers: Mapping[str, Axis]
    readers: tuple[Axis, ...]
    terms: tuple[tuple[str, int, tuple[Array, ...]], ...]
    blocks: Mapping[str, tuple[Array, int]]
    widths: Mapping[str, tuple[Array | int, ...]]
    folds: Mapping[str, Fold]
    seen: tuple[Seen, ...]
    program: ExportedProgram = field(repr=False, compare=False)

    @staticmethod
    def of(model: nn.Module, inputs: Sequence[TensorSpec]) -> ChannelGraph:
        """Trace the model and follow its channels. Raises: ModelError where it cannot be traced.

        A model that was traced before, and still is what it was, is not traced again: `decide` and `apply` see the same.
        """
        digest, known = Artifact(model, tuple(inputs), ()).digest(), _TRACED.get(model)
        if known is None or known[:2] != (digest, tuple(inputs)):
            known = _TRACED[model] = digest, tuple(inputs), ChannelGraph._traced(model, inputs)
        return known[2]

    @staticmethod
    def _traced(model: nn.Module, inputs: Sequence[TensorSpec]) -> ChannelGraph:
        program = trace(model, inputs)
        signature = program.graph_signature
        flow = Flow({**signature.inputs_to_parameters, **signature.inputs_to_buffers})
        tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        tied: dict[int, Dims] = {}
        flow.constants.update(signature.inputs_to_lifted_tensor_constants)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                _enter(flow, node, tensors, tied)
            elif node.op == "call_function":
                _follow(flow, node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    flow.freeze_node(source, "it is an output of the model")
            else:
                value = node.meta.get("val")
                flow.values[node.name] = (None,) * (value.dim() if isinstance(value, torch.Tensor) else 0)
        seen = [_seen(node, flow) for node in program.graph.nodes if node.op == "call_function"]
        return _graph(flow, seen, program)

    def removed_with(self, unit: int) -> dict[Axis, tuple[int, ...]]:
        """Which indices of which parameters' dimensions go with one unit."""
        found = {axis: np.flatnonzero(owners == unit) for axis, owners in self.axes.items()}
        return {axis: tuple(indices.tolist()) for axis, indices in found.items() if indices.size}

    def kept_of(self, owners: Array, kept: Mask) -> Mask:
        """[indices]: which indices of a dimension stay when these units stay."""
        return np.append(kept, True)[owners]  # FIXED is -1, the place that is always True

    def with_reasons(self, reasons: Mapping[int, str]) -> ChannelGraph:
        """The same graph with more groups frozen: by place in `groups`, why."""
        groups = (replace(group, reason=group.reason or reasons.get(i)) for i, group in enumerate(self.groups))
        return replace(self, groups=tuple(groups))

    def without(self, units: Sequence[int]) -> Mask:
        """The mask that removes these units alone."""
        kept = np.ones(self.units, dtype=np.bool_)
        kept[list(units)] = False
        return kept

    def macs(self, kept: Mask) -> int:
        """Multiply-accumulates of one sample when these units stay, as `kdc.numerics.cost` counts the exported file's.

        Products of two activations count, those of weights alone do not. Every free size is 1.
        """
        return sum(
            factor * prod(int(self.kept_of(owners, kept).sum()) for owners in dims) for _, factor, dims in self.terms
        )


def _enter(flow: Flow, node: Node, tensors: Mapping[str, torch.Tensor], tied: dict[int, Dims]) -> None:
    """A placeholder: a parameter's dimensions get labels, once for all its names; an input's do not."""
    shape = sizes(node)
    name = flow.parameters.get(node.name)
    if name is None:
        flow.values[node.name] = (None,) * len(shape)
        return
    dims = tied.setdefault(id(tensors.get(name, node)), tuple(flow.labels.fresh(size) for size in shape))
    flow.values[node.name] = dims
    flow.constants.add(node.name)
    for axis, labels in enumerate(dims):
        if labels is not None:
            flow.axes[name, axis] = labels


def _follow(flow: Flow, node: Node) -> None:
    """Find an operator's rule and note what leaves it."""
    target: Any = node.target
    if not isinstance(node.meta.get("val"), (torch.Tensor, list, tuple)):
        return  # a size, an assertion: no channels pass
    if target is python.getitem:
        flow.values[node.name] = SHAPE_RULES["getitem"](flow, node)
        return
    aten = getattr(target, "namespace", "") == "aten"
    name = operator(node)
    rule = LAYER_RULES.get(name) or SHAPE_RULES.get(name) or SHAPE_RULES.get(name.rstrip("_")) if aten else None
    if rule is None and aten and torch.Tag.pointwise in target.tags:
        rule = pointwise
    products = len(flow.terms)
    flow.values[node.name] = rule(flow, node) if rule else flow.freeze_all(node, f"operator {name} is not followed")
    if rule is None:
        count_call(flow, node)
    if all(source.name in flow.constants for source in node.all_input_nodes) and _repeats(target):
        flow.constants.add(node.name)
        del flow.terms[products:]  # computed once, before the first sample


def _repeats(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ())


def _seen(node: Node, flow: Flow) -> Seen:
    """Shapes, with labels where there are any, and the numbers that a model may have computed from its width."""
    value = node.meta.get("val")
    outputs = value if isinstance(value, (list, tuple)) else [value]
    labelled = flow.values.get(node.name, ())
    entries = labelled if isinstance(labelled, list) else [labelled]
    shapes = [tuple(_size(size) for size in out.shape) if isinstance(out, torch.Tensor) else () for out in outputs]
    dims = [
        own if len(own) == len(shape) else (None,) * len(shape) for own, shape in zip(entries, shapes, strict=False)
    ]
    merged = [
        tuple(size if labels is None else labels for labels, size in zip(own, shape, strict=True))
        for own, shape in zip(dims, shapes, strict=False)
    ]
    flat = [number for number in (*node.args, *node.kwargs.values()) if isinstance(number, float)]
    constant, channels = node.name in flow.constants, flow.renormalized.get(node.name)
    return Seen(operator(node), tuple(merged), tuple(flat), constant, channels)


def _size(size: Any) -> int:
    return size if isinstance(size, int) else FIXED  # a free size differs in name from trace to trace


def _graph(flow: Flow, seen: list[Seen], program: ExportedProgram) -> ChannelGraph:
    """Number the classes of labels that layers make, and group them by the layers that make them."""
    numbers: dict[int, int] = {}
    for axis in flow.producers:
        for root in flow.labels.roots(flow.axes[axis]).tolist():
            numbers.setdefault(root, len(numbers))

    def units(labels: Array) -> Array:
        return np.array([numbers.get(root, FIXED) for root in flow.labels.roots(labels).tolist()], dtype=np.int64)

    axes = {axis: units(labels) for axis, labels in flow.axes.items()}
    layers = {layer_name(axis[0]): axis for axis in flow.producers}
    made: dict[int, dict[str, int]] = {number: {} for number in numbers.values()}
    for layer, axis in layers.items():
        for unit in axes[axis].tolist():
            made[unit][layer] = made[unit].get(layer, 0) + 1
    members: dict[tuple[tuple[tuple[str, int], ...], str | None], list[int]] = {}
    for root, unit in numbers.items():
        members.setdefault((tuple(made[unit].items()), flow.labels.reason(root)), []).append(unit)
    groups = [
        Group(
            tuple(layer for layer, _ in key),
            tuple(count for _, count in key),
            tuple(own),
            reason or ("all its channels go together" if len(own) == 1 else None),
        )
        for (key, reason), own in members.items()
    ]
    return ChannelGraph(
        groups=tuple(groups),
        units=len(numbers),
        axes=axes,
        layers=layers,
        readers=tuple(flow.readers),
        terms=tuple((t.layer, t.factor, tuple(units(labels) for labels in t.dims)) for t in flow.terms),
        blocks={module: (units(labels), width) for module, (labels, width) in flow.blocks.items()},
        widths={m: tuple(d if isinstance(d, int) else units(d) for d in dims) for m, dims in flow.widths.items()},
        folds=flow.folds,
        seen=tuple(
            replace(
                s,
                dims=tuple(tuple(d if isinstance(d, int) else units(d) for d in dims) for dims in s.dims),
                renormalized=None if s.renormalized is None else units(s.renormalized),
            )
            for s in seen
        ),
        program=program,
    )
