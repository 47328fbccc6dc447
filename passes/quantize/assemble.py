"""The quantized model: a float graph with its layers and tensors held to the grids of a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx, nn

from kdc.core.artifact import Artifact
from kdc.core.errors import ModelError
from kdc.numerics.affine import Affine, integers
from passes.quantize.graph import LINEARS, parameter_of, plain_graph
from passes.quantize.placement import Placement, candidates, place
from passes.quantize.quantizers import QuantizedLayer, Quantizer

if TYPE_CHECKING:
    from passes.quantize import Ranges

HOME = "activation_quantizers"


def assemble(artifact: Artifact[nn.Module], decision: Ranges) -> fx.GraphModule:
    """The artifact's model on weights of its own, quantized as decided.

    Layers keep their names and those of their weights; the quantizer of tensor t is `activation_quantizers.q_t`.
    Raises: ModelError where the decision is of another model.
    """
    graph = plain_graph(artifact.model, artifact.inputs)
    _check(set(candidates(graph)), decision)
    placement = place(graph, decision.layers, linear_outputs=decision.scheme.linear_outputs)
    quantizers = _quantizers(placement, decision)
    for name, quantizer in quantizers.items():
        graph.add_submodule(_home(name), quantizer)
    of = {tensor: quantizers[name] for name, tensors in placement.groups.items() for tensor in tensors}
    _replace_layers(graph, placement, decision, of)
    _insert(graph.graph, placement)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    for node in graph.graph.nodes:
        node.meta = {}  # torch's traces and sizes of the float graph: neither copied nor printed from here on
    return fx.GraphModule(graph, graph.graph).eval()


def _home(name: str) -> str:
    return f"{HOME}.q_{name}"  # a tensor may be called "to" or "float", which a module has as methods


def _check(found: set[str], decision: Ranges) -> None:
    unknown = sorted(set(decision.layers) - found)
    if unknown:
        raise ModelError(f"the decision quantizes {unknown}, which the model does not have", do="decide again")


def _quantizers(placement: Placement, decision: Ranges) -> dict[str, Quantizer]:
    missing = sorted(set(placement.groups) - set(decision.activations))
    if missing:
        raise ModelError(f"the decision has no grid for the tensors {missing}", do="decide again")
    low, high = integers(decision.scheme.activations, decision.scheme.symmetric_activations)
    grids = {name: decision.activations[name] for name in placement.groups}
    return {name: Quantizer(Affine(grid.scale, grid.zero_point, low, high)) for name, grid in grids.items()}


def _replace_layers(
    graph: fx.GraphModule, placement: Placement, decision: Ranges, quantizer_of: dict[fx.Node, Quantizer]
) -> None:
    """Each layer's call of an ATen operator becomes a call of a module of the layer's name."""
    for node, name in placement.layers.items():
        x, weight, *rest = node.args
        bias = rest[0] if rest else None
        values = parameter_of(graph, weight)
        assert values is not None
        assert isinstance(x, fx.Node)
        target: Any = node.target
        layer = QuantizedLayer(
            target,
            tuple(rest[1:]),
            values,
            parameter_of(graph, bias),
            per_channel=decision.scheme.per_channel,
            bits=decision.scheme.weight_bits,
            clip_by_mse=decision.weights == "mse",
            source=quantizer_of[x] if decision.scheme.int32_bias and not _is_batched_product(node) else None,
        )
        path = _free_name(graph, name)
        graph.add_submodule(path, layer)
        node.op, node.target, node.args, node.kwargs = "call_module", path, (x,), {}


def _is_batched_product(node: fx.Node) -> bool:
    """A linear layer on more than [batch, channels] is MatMul and Add in the file: runtimes fuse a float Add alone."""
    return node.target in LINEARS and node.args[0].meta["val"].dim() != 2  # type: ignore[union-attr]


def _free_name(graph: fx.GraphModule, name: str) -> str:
    """The layer's own name, unless a module of that name holds more than one weight and one bias."""
    try:
        held = graph.get_submodule(name)
    except AttributeError:
        return name
    names = {*dict(held.named_parameters()), *dict(held.named_buffers())}
    return name if names <= {"weight", "bias"} else f"{name}_quantized"


def _insert(graph: fx.Graph, placement: Placement) -> None:
    first = {tensor: name for name, tensors in placement.groups.items() for tensor in tensors}
    for tensor, name in first.items():
        if tensor in placement.resident:
            readers = list(tensor.users)
        else:
            readers = [reader for reader in tensor.users if (reader, tensor) in placement.reads]
        with graph.inserting_after(tensor):
            call = graph.call_module(_home(name), (tensor,))
        for reader in readers:
            reader.replace_input_with(tensor, call)
