"""A model as a plain, trainable graph of ATen operators, its BatchNorms folded into the layers before them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from kdc.core.spec import TensorSpec
from kdc.core.trace import trace

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding})
LINEARS = frozenset({aten.linear.default})
LAYERS = CONVOLUTIONS | LINEARS
_DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


@torch.no_grad()
def plain_graph(model: nn.Module, inputs: Sequence[TensorSpec]) -> fx.GraphModule:
    """The model's graph, in evaluation mode, on weights of its own; parameters keep their dotted names.

    Unlike the module that torch.export gives, it can be switched between training and evaluation. BatchNorms behind a
    layer are folded into its weights and bias; others normalize by their stored statistics, in training too.
    Source of the folding: Jacob et al. 2017, arXiv:1712.05877, section 3.2.
    Raises: ModelError where the model cannot be traced.
    """
    exported: Any = trace(copy.deepcopy(model), inputs).module(check_guards=False)
    graph: fx.Graph = exported.graph
    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            node = _functional(node)  # noqa: PLW2901
        if node.target in _DROPOUTS:  # they were traced in evaluation mode: each gives what it gets
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.batch_norm.default:
            _fold(exported, node)
    graph.eliminate_dead_code()
    _unwrap(graph)
    return fx.GraphModule(exported, graph).eval()  # takes over only what the graph still names


def parameter_of(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    """The tensor that a node of the graph reads from the module; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = graph
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found if isinstance(found, torch.Tensor) else None


def layer_name(weight: fx.Node) -> str:
    """The layer that a weight belongs to: "blocks.0.conv1" for "blocks.0.conv1.weight"."""
    return str(weight.target).removesuffix("weight").rstrip("._") or str(weight.target)


def _unwrap(graph: fx.Graph) -> None:
    """Let forward() take and give plain tensors, where the model did: torch.export's own wrapping cannot be copied."""
    wrapping: Any = graph._codegen
    given = wrapping.pytree_info.out_spec
    output = graph.output_node()
    leaves: Any = output.args[0]
    if given.is_leaf():
        output.args = (leaves[0],)
    elif given.type is tuple and given.num_children == given.num_leaves:
        output.args = (tuple(leaves),)
    else:
        return  # a dictionary, or tuples in tuples
    graph.set_codegen(fx.graph.CodeGen())


def _functional(node: fx.Node) -> fx.Node:
    """`relu_(x)` as `relu(x)`, which all later readers of x then read: a quantizer in between would hide the change."""
    target: Any = node.target
    name = target._schema.name.split("::")[1]
    plain = getattr(getattr(aten, name.removesuffix("_"), None), target._overloadname, None)
    changed = node.args[0] if node.args else None
    if not name.endswith("_") or plain is None or not isinstance(changed, fx.Node):
        return node
    node.target = plain
    changed.replace_all_uses_with(node, lambda reader: reader > node)
    return node


def _fold(module: Any, norm: fx.Node) -> None:
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in LAYERS or len(layer.users) != 1:
        return
    weight_node = layer.args[1]
    weight = parameter_of(module, weight_node)
    bias = parameter_of(module, layer.args[2]) if len(layer.args) > 2 else None
    gamma, beta, mean, variance = (parameter_of(module, node) for node in norm.args[1:5])
    shared = not isinstance(weight_node, fx.Node) or len(weight_node.users) != 1
    if weight is None or mean is None or variance is None or shared or norm.args[5]:
        return
    assert isinstance(weight_node, fx.Node)
    # In float64: the folded weights are then the nearest floats to the true ones.
    gain = torch.rsqrt(variance.double() + float(norm.args[7]))  # type: ignore[arg-type]
    gain = gain if gamma is None else gain * gamma.double()
    shift = (0.0 if bias is None else bias.double()) - mean.double()
    shift = shift * gain if beta is None else shift * gain + beta.double()
    folded = weight.double() * gain.reshape(-1, *(1 for _ in weight.shape[1:]))
    _set(module, str(weight_node.target), folded.to(weight.dtype))
    name = f"{layer_name(weight_node)}.bias"
    _set(module, name, shift.to(weight.dtype))
    with module.graph.inserting_before(layer):
        bias_node = module.graph.get_attr(name)
    layer.args = (layer.args[0], weight_node, bias_node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)


def _set(module: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value.detach().clone()))
