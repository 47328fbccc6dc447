"""Rules of the operators that compute nothing with weights: they move, cut, join or reduce dimensions.

What a hard-coded size does when channels go cannot be seen in the graph; these rules take every size as one that
follows the channels, and `probe` finds out by trying.
"""

from __future__ import annotations

from math import prod

import numpy as np
from torch.fx import Node

from passes.prune.flow import FREE_SIZES, Flow, Rule, argument, operator, sizes
from passes.prune.labels import Array, Dims
from passes.prune.pointwise import broadcast, pointwise


def reshape(flow: Flow, node: Node) -> Dims | list[Dims]:
    """view, flatten, squeeze...: dimensions are split into common pieces and the pieces merged again.

    Where a labelled dimension is split, its largest piece (of equals the last) carries the labels and the other pieces
    stay whole, so that all of them keep the same positions. Where it is merged, each label stands for many indices.
    """
    source = node.all_input_nodes[0]
    before, after = sizes(source), sizes(node)
    if 0 in before:
        return flow.freeze_all(node, f"{node.name} has no elements")
    shared = _common_pieces([s for s in before if s != 1], [s for s in after if s != 1])
    if shared is None:
        return flow.freeze_all(node, f"{node.name} cuts across it")
    labelled: list[Array | None] = []
    rest = list(shared)
    for labels, size in zip(flow.dims(source), before, strict=True):
        own = [] if size != 1 else [1]
        while prod(own) != size:
            own.append(rest.pop(0))
        if size == 1:
            flow.freeze(labels, "it is a single channel")
        else:
            labelled.extend(_split(flow, labels, own))
    result: list[Array | None] = []
    parts = list(zip(labelled, shared, strict=True))
    for size in after:
        own_parts: list[tuple[Array | None, int]] = []
        while size != prod(part for _, part in own_parts):
            own_parts.append(parts.pop(0))
        result.append(_merge(flow, own_parts, node.name))
    return tuple(result)


def _common_pieces(before: list[int], after: list[int]) -> list[int] | None:
    """The coarsest sizes whose runs multiply to both shapes; None where there are none. (4, 6) and (2, 12): 2, 2, 6."""
    pieces: list[int] = []
    before, after = list(before), list(after)
    while before and after:
        a, b = before.pop(), after.pop()
        small, large = min(a, b), max(a, b)
        if large % small:
            return None
        pieces.append(small)
        if large != small:
            (before if a == large else after).append(large // small)
    return None if before or after else pieces[::-1]


def _split(flow: Flow, labels: Array | None, pieces: list[int]) -> list[Array | None]:
    if labels is None or len(pieces) == 1:
        return [labels] * len(pieces)
    carrier = max(range(len(pieces)), key=lambda place: (pieces[place], place))
    by_carrier = np.moveaxis(labels.reshape(pieces), carrier, 0).reshape(pieces[carrier], -1)
    flow.labels.unify(by_carrier, by_carrier[:, :1])
    return [by_carrier[:, 0] if place == carrier else None for place in range(len(pieces))]


def _merge(flow: Flow, parts: list[tuple[Array | None, int]], name: str) -> Array | None:
    labelled = [place for place, (labels, _) in enumerate(parts) if labels is not None]
    if len(parts) == 1 or not labelled:
        return parts[0][0] if parts else None
    if len(labelled) > 1 or any(size >= min(FREE_SIZES) for _, size in parts):
        for labels, _ in parts:
            flow.freeze(labels, f"{name} merges it with another dimension that can change")
        return None
    [place] = labelled
    labels = parts[place][0]
    assert labels is not None
    shape = [size for _, size in parts]
    return np.broadcast_to(labels.reshape([-1 if i == place else 1 for i in range(len(parts))]), shape).reshape(-1)


def permute(flow: Flow, node: Node) -> Dims:
    """Dimensions in another order."""
    value, name = flow.dims(node.args[0]), operator(node)
    rank = len(value)
    if name == "permute":
        order = [int(d) % rank for d in argument(node, "dims")]
    else:
        order = list(range(rank))
        first, second = (0, 1) if name == "t" else (-1, -2) if name == "mT" else tuple(node.args[1:3])
        if rank > 1:
            order[int(str(first))], order[int(str(second))] = order[int(str(second))], order[int(str(first))]
    return tuple(value[place] for place in order)


def cat(flow: Flow, node: Node) -> Dims:
    """Labels one after the other along `dim`; the other dimensions keep the same indices."""
    tensors = [source for source in argument(node, "tensors") if sizes(source) != (0,)]
    dim = int(argument(node, "dim") or 0) % len(sizes(node))
    own = [flow.dims(source)[dim] for source in tensors]
    if sizes(node)[dim] >= min(FREE_SIZES):  # labels as many as the number that stands for a free size mean nothing
        for labels in own:
            flow.freeze(labels, f"{node.name} joins it with a free size")
        own = [None] * len(tensors)
    joined: list[Array] = []
    for source, labels in zip(tensors, own, strict=True):
        if labels is None and any(other is not None for other in own):
            labels = flow.labels.fresh(sizes(source)[dim])  # noqa: PLW2901
            flow.freeze(labels, f"{source.name} has a fixed width")
        if labels is not None:
            joined.append(labels)
    rest = [(_with(flow.dims(source), dim, None), _size(sizes(source), dim)) for source in tensors]
    result = broadcast(flow, node, rest, _size(sizes(node), dim))
    return _with(result, dim, np.concatenate(joined) if joined else None)


def stack(flow: Flow, node: Node) -> Dims:
    """A new dimension; the others keep the same indices."""
    tensors = argument(node, "tensors")
    dim = int(argument(node, "dim") or 0) % len(sizes(node))
    shape = sizes(node)[:dim] + sizes(node)[dim + 1 :]
    result = broadcast(flow, node, [(flow.dims(source), sizes(source)) for source in tensors], shape)
    return (*result[:dim], None, *result[dim:])


def pieces(flow: Flow, node: Node) -> list[Dims] | Dims:
    """chunk, split, unbind: equal pieces keep the same positions, because the cuts are found anew by halving."""
    source, outputs = node.args[0], node.meta["val"]
    value = flow.dims(source)
    dim = int(argument(node, "dim") or 0) % len(value)
    labels = value[dim]
    if operator(node) == "unbind":
        flow.freeze(labels, f"{node.name} takes it apart")
        return [value[:dim] + value[dim + 1 :]] * len(outputs)
    extents = [int(output.shape[dim]) if labels is not None else 0 for output in outputs]
    if labels is None or len(outputs) == 1:
        return [value] * len(outputs)
    if len(set(extents)) > 1:
        flow.freeze(labels, f"{node.name} cuts it into unequal pieces")
        return [_with(value, dim, None)] * len(outputs)
    return [_with(value, dim, row) for row in flow.labels.rows(labels, len(outputs))]


def cut(flow: Flow, node: Node) -> Dims:
    """slice, narrow: a piece of an even division; any other piece freezes what it is cut from."""
    value = flow.dims(node.args[0])
    dim = int(argument(node, "dim") or 0) % len(value)
    labels, size, width = value[dim], sizes(node.args[0])[dim], sizes(node)[dim]
    start, step = argument(node, "start") or 0, argument(node, "step") or 1
    if labels is None or size == width:
        return value
    if isinstance(start, int) and step == 1 and width and size % width == 0 and start % size % width == 0:
        return _with(value, dim, flow.labels.rows(labels, size // width)[start % size // width])
    flow.freeze(labels, f"{node.name} takes a part of it")
    return _with(value, dim, None)


def select(flow: Flow, node: Node) -> Dims:
    """One index of a dimension, which is then gone."""
    value = flow.dims(node.args[0])
    dim = int(argument(node, "dim")) % len(value)
    flow.freeze(value[dim], f"{node.name} takes one channel of it")
    return value[:dim] + value[dim + 1 :]


def expand(flow: Flow, node: Node) -> Dims:
    """Sizes of one repeated; new dimensions in front."""
    source = node.args[0]
    return broadcast(flow, node, [(flow.dims(source), sizes(source))], sizes(node))


def pixel_shuffle(flow: Flow, node: Node) -> Dims:
    """[..., C*r*r, H, W] -> [..., C, H*r, W*r]: the r*r channels of one output go together."""
    value = flow.dims(node.args[0])
    for fixed in value[-2:]:
        flow.freeze(fixed, "it is a spatial size")
    if value[-3] is None:
        return (*value[:-2], None, None)
    return (*value[:-3], flow.labels.blocks(value[-3], sizes(node)[-3])[:, 0], None, None)


def glu(flow: Flow, node: Node) -> Dims:
    """Two halves multiplied: they keep the same positions."""
    value = flow.dims(node.args[0])
    dim = int(argument(node, "dim")) % len(value)
    labels = value[dim]
    return value if labels is None else _with(value, dim, flow.labels.rows(labels, 2)[0])


def reduce(flow: Flow, node: Node) -> Dims | list[Dims]:
    """mean, sum, amax...: over a labelled dimension they would change their meaning, so that it is frozen."""
    source = node.all_input_nodes[0]
    if len(node.all_input_nodes) > 1:
        return flow.freeze_all(node, f"{node.name} of two tensors is not followed")
    value, dims = flow.dims(source), argument(node, "dim")
    rank = len(value)
    over = {int(d) % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims])} if dims is not None else set()
    over = over or set(range(rank))
    for dim in over:
        flow.freeze(value[dim], f"{node.name} reduces over it")
    kept = argument(node, "keepdim")
    result = tuple(None if dim in over else value[dim] for dim in range(rank) if kept or dim not in over)
    outputs = node.meta["val"]
    return [result] * len(outputs) if isinstance(outputs, (list, tuple)) else result


def along(flow: Flow, node: Node) -> Dims:
    """softmax, cumsum...: every index of `dim` depends on the others."""
    value = flow.dims(node.args[0])
    flow.freeze(value[int(argument(node, "dim")) % len(value)], f"{node.name} works along it")
    return value


def spatial(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Pooling, interpolation: the last dimensions change, the channels pass."""
    value, count = flow.dims(node.args[0]), _digit(operator(node))
    for fixed in value[-count:]:
        flow.freeze(fixed, "it is a spatial size")
    result = (*value[:-count], *((None,) * count))
    outputs = node.meta["val"]
    return [result] * len(outputs) if isinstance(outputs, (list, tuple)) else result


def pad(flow: Flow, node: Node) -> Dims:
    """Padding of the last dimensions; channels that are added to are frozen."""
    value, amounts = flow.dims(node.args[0]), list(argument(node, "pad"))
    result = list(value)
    for place in range(len(amounts) // 2):
        if any(amount != 0 for amount in amounts[2 * place : 2 * place + 2]):
            flow.freeze(value[-1 - place], f"{node.name} adds channels to it")
            result[-1 - place] = None
    return tuple(result)


def getitem(flow: Flow, node: Node) -> Dims:
    """One of an operator's outputs."""
    source, index = node.args[0], node.args[1]
    value = flow.values.get(source.name, ()) if isinstance(source, Node) else ()
    return value[index] if isinstance(value, list) and isinstance(index, int) else ()


def _digit(name: str) -> int:
    return next(int(letter) for letter in name if letter.isdigit())


def _with(dims: Dims, dim: int, labels: Array | None) -> Dims:
    return (*dims[:dim], labels, *dims[dim + 1 :])


def _size(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """The shape with `dim` of size 1, where it plays no part."""
    return (*shape[:dim], 1, *shape[dim + 1 :])


SHAPE_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "t", "mT", "swapaxes", "swapdims"), permute),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "unbind"), pieces),
    **dict.fromkeys(("slice", "narrow"), cut),
    "select": select,
    **dict.fromkeys(("expand", "expand_as"), expand),
    "pixel_shuffle": pixel_shuffle,
    "glu": glu,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "argmax", "argmin", "any"), reduce),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"), along),
    **{f"{kind}_pool{n}d": spatial for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")},
    **{f"upsample_{kind}": spatial for kind in ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact2d")},
    **{f"upsample_{kind}": spatial for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")},
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    "getitem": getitem,
    # what torch does not tag as pointwise, though it is
    **dict.fromkeys(("hardswish", "dropout", "feature_dropout", "dropout_", "rsub", "relu6"), pointwise),
    **dict.fromkeys(
        ("to", "_to_copy", "type_as", "contiguous", "detach", "alias", "zeros_like", "ones_like"), pointwise
    ),
}
