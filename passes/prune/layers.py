"""Rules of the operators that have weights or normalise: how they make, read and tie channels."""

from __future__ import annotations

from math import prod

import numpy as np
from torch.fx import Node

from passes.prune.flow import Flow, Fold, MacTerm, Rule, argument, operator, per_sample, sizes
from passes.prune.labels import Array, Dims


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
    positions = sizes(x if transposed else node)[channel + 1 :]
    flow.terms.append(_term(name, kernel, sizes(weight), positions))
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


def _term(name: str, kernel: Dims, shape: tuple[int, ...], positions: tuple[int, ...]) -> MacTerm:
    factor = prod(per_sample(size) for size in positions) * prod(shape[2:])
    factor *= prod(size for labels, size in zip(kernel[:2], shape[:2], strict=True) if labels is None)
    return MacTerm(name, factor, tuple(labels for labels in kernel[:2] if labels is not None))


def linear(flow: Flow, node: Node) -> Dims:
    """Input [..., I], weight [O, I], bias [O]."""
    x, weight, bias = argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    value, matrix = flow.dims(x), flow.dims(weight)
    flow.labels.match(value[-1], matrix[1], f"{x.name} has a fixed width")
    if bias is not None:
        flow.labels.match(flow.dims(bias)[0], matrix[0], f"{node.name} has a fixed width")
    name = flow.layer(weight, 0, 1)
    lead = [(labels, size) for labels, size in zip(value[:-1], sizes(x)[:-1], strict=True)]
    term = _term(name, matrix, sizes(weight), tuple(size for labels, size in lead if labels is None))
    flow.terms.append(MacTerm(name, term.factor, (*term.dims, *(labels for labels, _ in lead if labels is not None))))
    return (*value[:-1], matrix[0])


def matmul(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Two factors, a [..., N, K] @ b [..., K, M], with a parameter's matrix or another activation on the right."""
    a, b = node.args[1:3] if operator(node) == "addmm" else node.args[:2]
    left, right = flow.dims(a), flow.dims(b)
    if len(left) < 2 or len(right) < 2:
        return flow.freeze_all(node, "a product with a vector is not followed")
    flow.labels.match(left[-1], right[-2], f"{node.name} reads a fixed width")
    lead = broadcast(flow, node, [(left[:-2], sizes(a)[:-2]), (right[:-2], sizes(b)[:-2])], sizes(node)[:-2])
    if isinstance(b, Node) and b.name in flow.constants and len(right) == 2:
        name = flow.layer(b, 1, 0)
        flow.terms.append(_term(name, right, sizes(b), sizes(a)[:-1]))
    out = (*lead, left[-2], right[-1])
    if operator(node) == "addmm":
        added = argument(node, "self")
        broadcast(flow, node, [(flow.dims(added), sizes(added)), (out, sizes(node))], sizes(node))
    return out


def einsum(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Dimensions with one letter keep the same indices."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "..." in equation or "->" not in equation or not isinstance(operands, (list, tuple)):
        return flow.freeze_all(node, f"einsum {equation!r} is not followed")
    inputs, _, result = equation.partition("->")
    terms = inputs.split(",")
    letters: dict[str, Array | None] = {}
    extents: dict[str, set[int]] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, labels, size in zip(term, flow.dims(operand), sizes(operand), strict=True):
            extents.setdefault(letter, set()).add(size)
            matched = flow.labels.match(letters.get(letter, labels), labels, f"{node.name} reads a fixed width")
            letters[letter] = matched
    for letter, labels in letters.items():
        if len(extents[letter]) > 1:
            flow.freeze(labels, f"{node.name} stretches it")
        if letter not in result and inputs.count(letter) < 2:
            flow.freeze(labels, f"{node.name} sums over it")
    for term, operand in zip(terms, operands, strict=True):
        kept = [axis for axis, letter in enumerate(term) if letter in result]
        summed = [axis for axis, letter in enumerate(term) if letter not in result]
        if isinstance(operand, Node) and operand.name in flow.constants and kept and summed:
            flow.layer(operand, kept[-1], summed[0])
    return tuple(letters[letter] for letter in result)


def attention(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Query [..., T, D], key [..., S, D], value [..., S, E] -> [..., T, E]. D stays where the scale is 1/sqrt(D)."""
    nodes = [argument(node, name) for name in ("query", "key", "value")]
    if argument(node, "enable_gqa") or argument(node, "attn_mask") is not None:
        return flow.freeze_all(node, "attention with a mask or with shared keys is not followed")
    query, key, value = (flow.dims(n) for n in nodes)
    for labels in (query[-2], key[-2], value[-2]):
        flow.freeze(labels, "it is a sequence")
    if argument(node, "scale") is None:
        for labels in (query[-1], key[-1]):
            flow.freeze(labels, "attention's scale depends on the width of a head")
    else:
        flow.labels.match(query[-1], key[-1], f"{node.name} reads a fixed width")
    lead = [(dims[:-2], sizes(n)[:-2]) for dims, n in zip((query, key, value), nodes, strict=True)]
    return (*broadcast(flow, node, lead, sizes(node)[:-2]), None, value[-1])


def batch_norm(flow: Flow, node: Node) -> Dims:
    """Input [N, C, ...]; the statistics and the affine parameters are [C]. Instance norm is tied in the same way."""
    x = argument(node, "input")
    value = flow.dims(x)
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = argument(node, name)
        if own is not None:
            flow.labels.match(flow.dims(own)[0], value[1], f"{x.name} has a fixed width")
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
    """Input [..., *normalized]. A channel's removal changes the statistics of the others, which training then mends."""
    x, weight = argument(node, "input"), argument(node, "weight")
    value, rank = flow.dims(x), len(argument(node, "normalized_shape"))
    for own in (weight, argument(node, "bias")):
        for labels, normalised in zip(flow.dims(own), value[-rank:] if own is not None else (), strict=True):
            flow.labels.match(labels, normalised, f"{x.name} has a fixed width")
    flow.set_width(flow.owner(node, weight), value[-rank:], sizes(x)[-rank:])
    return value


def group_norm(flow: Flow, node: Node) -> Dims:
    """Input [N, C, ...]. Whole groups go where there are many (their statistics are theirs), else equal positions."""
    x, weight, groups = argument(node, "input"), argument(node, "weight"), int(argument(node, "num_groups"))
    value, channels = flow.dims(x), sizes(x)[1]
    for own in (weight, argument(node, "bias")):
        if own is not None:
            flow.labels.match(flow.dims(own)[0], value[1], f"{x.name} has a fixed width")
    module = flow.owner(node, weight)
    if value[1] is not None and groups > channels // groups:
        flow.labels.blocks(value[1], groups)
        flow.blocks[module] = (value[1], channels // groups)
    elif value[1] is not None:
        flow.labels.rows(value[1], groups)
    flow.set_width(module, value[1:2], sizes(x)[1:2])
    return value


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


def broadcast(
    flow: Flow, node: Node, operands: list[tuple[Dims, tuple[int, ...]]], out: tuple[int, ...]
) -> tuple[Array | None, ...]:
    """Dimensions matched from the right, as torch broadcasts them: equal sizes keep the same indices."""
    result: list[Array | None] = []
    for place, size in enumerate(out):
        facing = [
            (dims[place - len(out)], shape[place - len(out)]) for dims, shape in operands if _faces(shape, out, place)
        ]
        same = [labels for labels, own in facing if own == size]
        for labels in (labels for labels, own in facing if own != size):
            flow.freeze(labels, f"{node.name} stretches it over many channels")
        result.append(same[0] if same else None)
        for labels in same[1:]:
            result[-1] = flow.labels.match(result[-1], labels, f"{node.name} joins it with a fixed width")
    return tuple(result)


def _faces(shape: tuple[int, ...], out: tuple[int, ...], place: int) -> bool:
    return len(shape) >= len(out) - place


def pointwise(flow: Flow, node: Node) -> Dims:
    """Every index of the output reads the same index of each operand."""
    operands = [(flow.dims(source), sizes(source)) for source in node.all_input_nodes]
    return broadcast(flow, node, operands, sizes(node))


LAYER_RULES: dict[str, Rule] = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution for n in (1, 2, 3)},
    "convolution": convolution,
    "linear": linear,
    **dict.fromkeys(("mm", "addmm", "bmm", "matmul"), matmul),
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
