"""Rules of the operators that have weights: how they make, read and tie channels; and the table of all such rules."""

from __future__ import annotations

import numpy as np
from torch.fx import Node

from passes.prune.flow import Flow, Rule, argument, operator, sizes, sizes_of_one
from passes.prune.labels import Array, Dims
from passes.prune.norms import batch_norm, group_norm, layer_norm
from passes.prune.products import attention, einsum, matmul, product_with_vector


def convolution(flow: Flow, node: Node) -> Dims:
    """Input [..., C, *spatial], weight [O, C/groups, *kernel] (transposed: [C, O/groups, *kernel]).

    A grouped convolution needs groups of equal width. Either whole groups go, with what they read and make (depthwise
    is the extreme), or the same positions go in each group; the one that gives more independent units is taken.
    """
    x, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    groups = int(argument(node, "groups"))
    transposed = "transpose" in operator(node) or bool(argument(node, "transposed"))
    value, kernel, labels = flow.dims(x), flow.dims(weight), flow.labels
    spatial = len(kernel) - 2
    channel = len(value) - spatial - 1
    for fixed in (*kernel[2:], *value[channel + 1 :]):
        flow.freeze(fixed, "it is a spatial size of a convolution")
    read, made = value[channel], kernel[1] if transposed else kernel[0]
    flow.freeze_weights(node, read)
    if groups == 1:
        labels.match(read, kernel[0] if transposed else kernel[1], f"{x.name} has a fixed width")
    elif made is not None:
        read = labels.match(read, kernel[0], f"{x.name} has a fixed width") if transposed else read
        made = _grouped(flow, read, kernel, groups, transposed)
        if _whole(sizes(weight), groups, transposed) and made is not None:
            per_group = sizes(weight)[1] if transposed else sizes(weight)[0] // groups
            flow.blocks[flow.owner(node, weight)] = (made, per_group)
    if bias is not None:
        labels.match(flow.dims(bias)[0], made, f"{node.name} has a fixed width")
    name = flow.layer(weight, 1 if transposed else 0, 0 if transposed else 1)
    lead = zip(value[:channel], sizes_of_one(x), strict=False)
    positions = [(None, size) for size in sizes_of_one(x if transposed else node)[channel + 1 :]]
    flow.multiply(name, [*lead, *zip(kernel, sizes(weight), strict=True), *positions])
    return (*value[:channel], made, *((None,) * spatial))


def _grouped(flow: Flow, read: Array | None, kernel: Dims, groups: int, transposed: bool) -> Array | None:
    """Tie a grouped convolution's inputs [C], weight and outputs; returns the outputs' labels [O]."""
    labels = flow.labels
    first, second = kernel[0], kernel[1]
    if first is None or second is None:
        flow.freeze(read, "a grouped convolution has a fixed weight")
        return None
    whole = _whole((len(first), len(second)), groups, transposed)
    if transposed:
        if not whole:
            labels.rows(first, groups)
            return np.tile(second, groups)
        blocks = labels.blocks(first, groups)
        flow.freeze(second, "it is the width of a group")
        return np.repeat(blocks[:, 0], len(second))
    if not whole:
        if read is not None:
            labels.rows(read, groups)
        labels.match(None if read is None else read[: len(second)], second, "a grouped convolution reads a fixed width")
        labels.rows(first, groups)
        return first
    blocks = labels.blocks(first, groups)
    flow.freeze(second, "it is the width of a group")
    taken = None if read is None else labels.blocks(read, groups)[:, 0]
    labels.match(blocks[:, 0], taken, "a grouped convolution reads a fixed width")
    return first


def _whole(weight: tuple[int, ...], groups: int, transposed: bool) -> bool:
    width = weight[0] // groups if transposed else weight[1]
    return groups > width


def linear(flow: Flow, node: Node) -> Dims:
    """Input [..., I], weight [O, I], bias [O]."""
    x, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    value, matrix = flow.dims(x), flow.dims(weight)
    read = flow.labels.match(value[-1], matrix[1], f"{x.name} has a fixed width")
    flow.freeze_weights(node, read)
    if bias is not None:
        flow.labels.match(flow.dims(bias)[0], matrix[0], f"{node.name} has a fixed width")
    lead = zip(value[:-1], sizes_of_one(x)[:-1], strict=True)
    flow.multiply(flow.layer(weight, 0, 1), [*lead, *zip(matrix, sizes(weight), strict=True)])
    return (*value[:-1], matrix[0])


def prelu(flow: Flow, node: Node) -> Dims:
    """Input [N, C, ...], one slope for all or one a channel."""
    x, slope = node.args[0], node.args[1]
    value = flow.dims(x)
    if sizes(slope) != (1,) and len(value) > 1:
        flow.labels.match(flow.dims(slope)[0], value[1], "PReLU reads a fixed width")
    return value


def embedding(flow: Flow, node: Node) -> Dims:
    """Weight [entries, width], indices [...] -> [..., width]."""
    weight, indices = argument(node, "weight"), argument(node, "indices")
    table = flow.dims(weight)
    flow.freeze(table[0], "it is an entry of an embedding")
    flow.layer(weight, 1, None)
    return (*flow.dims(indices), table[1])


LAYER_RULES: dict[str, Rule] = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "convolution": convolution,
    "linear": linear,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "matmul"), matmul),
    **dict.fromkeys(("mv", "addmv", "dot", "vdot"), product_with_vector),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "group_norm": group_norm,
    "prelu": prelu,
    "embedding": embedding,
}
