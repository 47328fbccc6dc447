"""Where quantizers stand: around the operators that a device runs in integers, and nowhere else.

A runtime runs an operator in integers when it finds DequantizeLinear before all of its inputs and QuantizeLinear behind
its output. So a tensor is *resident* when it exists as integers only: the output of a convolution (behind the ReLU that
is its only reader, which the quantizer's own clipping makes free), of an addition, multiplication, average pool or
concatenation of resident tensors, and what is merely moved or selected from one. A linear layer is quantized at its
input and its weights; its output stays float, as do the logits, because what follows it (softmax, normalization, GELU)
is float. Where the device's integer kernels give integers alone (`QuantizationScheme.linear_outputs`), it is resident as
a convolution's is, that of the last layer too. What is not named here stays float.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import torch
from torch import fx

from passes.quantize.graph import CONVOLUTIONS, LAYERS, layer_name, parameter_of

aten = torch.ops.aten

ACTIVATIONS = frozenset({aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default})
SUMS = frozenset({aten.add.Tensor, aten.mul.Tensor})
POOLS = frozenset({aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default})
CONCATENATIONS = frozenset({aten.cat.default})
MOVES = frozenset({
    aten.max_pool2d.default, aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten.permute.default,
    aten.transpose.int, aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default, aten.contiguous.default, aten.clone.default,
})  # fmt: skip
"""They give some of their input's values and no others: the same integers, under the same scale."""


@dataclass
class Placement:
    """Which layers are quantized, and the group of tensors that share each quantizer."""

    layers: dict[fx.Node, str] = field(default_factory=dict)
    """The layers' nodes and names."""
    resident: dict[fx.Node, None] = field(default_factory=dict)
    """Tensors that exist as integers only: whoever reads them reads the quantized values."""
    reads: dict[tuple[fx.Node, fx.Node], None] = field(default_factory=dict)
    """(reader, tensor) where only this reader sees the tensor quantized."""
    group_of: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """A tensor's group, by its first tensor."""

    def group(self, tensor: fx.Node) -> fx.Node:
        """The first tensor of the group that shares a quantizer with this one."""
        while (parent := self.group_of.setdefault(tensor, tensor)) is not tensor:
            tensor = parent
        return tensor

    def share(self, tensor: fx.Node, other: fx.Node) -> None:
        """One quantizer for both; the group keeps the name of the tensor that comes first in the graph."""
        first, second = sorted((self.group(tensor), self.group(other)))
        self.group_of[second] = first

    @property
    def groups(self) -> dict[str, list[fx.Node]]:
        """The tensors of each group, by the group's name, in the graph's order."""
        tensors = sorted({*self.resident, *(tensor for _, tensor in self.reads)})
        grouped: dict[str, list[fx.Node]] = {}
        for tensor in tensors:
            grouped.setdefault(self.group(tensor).name, []).append(tensor)
        return grouped


def candidates(graph: fx.GraphModule) -> dict[str, fx.Node]:
    """Layers that can be quantized, by name: those with a weight of their own."""
    found: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.target not in LAYERS:
            continue
        weight = node.args[1]
        bias = node.args[2] if len(node.args) > 2 else None
        owned = parameter_of(graph, weight) is not None and len(weight.users) == 1
        if owned and (bias is None or (parameter_of(graph, bias) is not None and len(bias.users) == 1)):
            found[layer_name(weight)] = node
    return found


def place(graph: fx.GraphModule, layers: Container[str], *, linear_outputs: bool = False) -> Placement:
    """Where quantizers stand when these layers are quantized. linear_outputs: as the device's scheme says."""
    placement = Placement(layers={n: name for name, n in candidates(graph).items() if name in layers})
    tail = _tail(graph.graph)
    for node in graph.graph.nodes:
        if node in placement.layers:
            _read(placement, node, node.args[0])
            if node.target in CONVOLUTIONS or linear_outputs:
                _reside(placement, _absorbed(node))
        elif node in tail:
            continue
        elif node.target in SUMS or node.target in CONCATENATIONS:
            tensors = list(node.args[:2] if node.target in SUMS else node.args[0])
            if all(_is_activation(t) for t in tensors) and any(t in placement.resident for t in tensors):
                for tensor in tensors:
                    _read(placement, node, tensor)
                if node.target in SUMS:
                    _reside(placement, _absorbed(node))
                else:
                    _reside(placement, node)
                    for tensor in tensors:
                        placement.share(tensor, node)
        elif node.target in POOLS and node.args[0] in placement.resident:
            _reside(placement, node)
        elif node.target in MOVES and node.args[0] in placement.resident:
            _reside(placement, node)
            placement.share(node.args[0], node)
    return placement


def _read(placement: Placement, reader: fx.Node, tensor: fx.Node) -> None:
    if tensor not in placement.resident:
        placement.reads[reader, tensor] = None


def _reside(placement: Placement, tensor: fx.Node) -> None:
    placement.resident[tensor] = None
    for reader in tensor.users:
        placement.reads.pop((reader, tensor), None)


def _absorbed(node: fx.Node) -> fx.Node:
    """The activation that is the node's only reader, or the node."""
    reader = next(iter(node.users), None)
    return reader if reader is not None and len(node.users) == 1 and reader.target in ACTIVATIONS else node


def _is_activation(value: object) -> bool:
    if not isinstance(value, fx.Node) or value.op == "get_attr":
        return False
    tensor = value.meta.get("val")
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point()


def _tail(graph: fx.Graph) -> set[fx.Node]:
    """What stands between the last layers and the outputs: kept float, so that the outputs are not rounded."""
    tail: set[fx.Node] = {graph.output_node()}
    for node in reversed(graph.nodes):
        if (
            node.users
            and node.target in MOVES | SUMS | POOLS | CONCATENATIONS | ACTIVATIONS
            and tail.issuperset(node.users)
        ):
            tail.add(node)
    return tail
