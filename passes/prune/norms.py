"""Rules of normalizations: which dimensions their statistics are taken over, and what a removed channel does to them.

A statistic over channels is another one when channels leave. For an activation's norm over its channels (LayerNorm,
RMSNorm, a GroupNorm of wide groups) that is accepted: training mends it, and `Prune` says so. Any other statistic over
a dimension that could lose indices freezes it, above all one that is taken of weights, as weight standardization does.
"""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from passes.prune.flow import Flow, Fold, argument, operator, sizes
from passes.prune.labels import Array, Dims


def batch_norm(flow: Flow, node: Node) -> Dims:
    """Input [N, C, ...]; the statistics and the affine parameters are [C]. Instance norm is tied in the same way.

    Statistics that are taken of the input itself freeze what they are taken over: all but C (instance norm: N and C).
    """
    x, instance = argument(node, "input"), operator(node).startswith("instance")
    value = flow.dims(x)
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = argument(node, name)
        if own is not None:
            flow.labels.match(flow.dims(own)[0], value[1], f"{x.name} has a fixed width")
    if argument(node, "use_input_stats" if instance else "training"):
        for labels in value[2:] if instance else (value[0], *value[2:]):
            flow.freeze(labels, f"{node.name} takes its statistics over it")
    flow.set_width(flow.owner(node, argument(node, "weight")), value[1:2], sizes(x)[1:2])
    layer, scale = argument(x, "weight") if isinstance(x, Node) else None, argument(node, "weight")
    variance = argument(node, "running_var")
    if isinstance(layer, Node) and operator(x).startswith(("conv", "linear")) and isinstance(variance, Node):
        names = flow.parameters
        if layer.name in names and variance.name in names and (scale is None or scale.name in names):
            fold = Fold(
                None if scale is None else names[scale.name], names[variance.name], float(argument(node, "eps"))
            )
            flow.folds[names[layer.name]] = fold
    return value


def layer_norm(flow: Flow, node: Node) -> Dims:
    """Input [..., *normalized]. RMSNorm is tied in the same way."""
    x, weight = argument(node, "input"), argument(node, "weight")
    value, rank = flow.dims(x), len(argument(node, "normalized_shape"))
    for own in (weight, argument(node, "bias")):
        for labels, normalised in zip(flow.dims(own), value[-rank:] if own is not None else (), strict=True):
            flow.labels.match(labels, normalised, f"{x.name} has a fixed width")
    _renormalize(flow, node, x, value[-rank:])
    flow.set_width(flow.owner(node, weight), value[-rank:], sizes(x)[-rank:])
    return value


def group_norm(flow: Flow, node: Node) -> Dims:
    """Input [N, C, ...]. Whole groups go where there are many (their statistics are theirs), else equal positions."""
    x, weight, groups = argument(node, "input"), argument(node, "weight"), int(argument(node, "num_groups"))
    value, channels = flow.dims(x), sizes(x)[1]
    for own in (weight, argument(node, "bias")):
        if own is not None:
            flow.labels.match(flow.dims(own)[0], value[1], f"{x.name} has a fixed width")
    for labels in value[2:]:
        flow.freeze(labels, f"{node.name} takes its statistics over it")
    module = flow.owner(node, weight)
    if value[1] is not None and groups > channels // groups:
        flow.labels.blocks(value[1], groups)
        flow.blocks[module] = (value[1], channels // groups)
    elif value[1] is not None:
        flow.labels.rows(value[1], groups)
        _renormalize(flow, node, x, value[1:2])
    flow.set_width(module, value[1:2], sizes(x)[1:2])
    return value


def _renormalize(flow: Flow, node: Node, x: Node, dims: Dims) -> None:
    """Note that a norm's statistics are those of the channels that stay; of weights they must stay what they are."""
    channels: list[Array] = [labels for labels in dims if labels is not None]
    if x.name in flow.constants:
        for labels in channels:
            flow.freeze(labels, f"{node.name} takes statistics of weights over it")
    elif channels:
        flow.renormalized[node.name] = np.concatenate(channels)
