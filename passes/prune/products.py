"""Rules of products in which both factors may be activations: matrix products, einsum, attention."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Node, map_arg

from kdc.core.torch_macs import counted
from passes.prune.flow import Flow, argument, operator, sizes, sizes_of_one, value_of_one
from passes.prune.labels import Array, Dims
from passes.prune.pointwise import broadcast


def matmul(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Two factors, a [..., N, K] @ b [..., K, M], with a parameter's matrix or another activation on the right."""
    adds = operator(node) in ("addmm", "baddbmm")
    a, b = node.args[1:3] if adds else node.args[:2]
    left, right = flow.dims(a), flow.dims(b)
    if len(left) < 2 or len(right) < 2:
        return product_with_vector(flow, node)
    inner = flow.labels.match(left[-1], right[-2], f"{node.name} reads a fixed width")
    flow.freeze_weights(node, inner)
    lead = broadcast(flow, node, [(left[:-2], sizes(a)[:-2]), (right[:-2], sizes(b)[:-2])], sizes(node)[:-2])
    weight = isinstance(b, Node) and b.name in flow.constants and len(right) == 2
    out = (*lead, left[-2], right[-1])
    extents = [*zip(out, sizes_of_one(node), strict=True), (inner, sizes_of_one(a)[-1])]
    flow.multiply(flow.layer(b, 1, 0) if weight and isinstance(b, Node) else node.name, extents)
    if adds:
        added = argument(node, "self")
        broadcast(flow, node, [(flow.dims(added), sizes(added)), (out, sizes(node))], sizes(node))
    return out


def product_with_vector(flow: Flow, node: Node) -> Dims | list[Dims]:
    """mv, dot, and matmul with a vector: every element of the matrix (or of either vector) is multiplied once."""
    factors = node.args[1:3] if operator(node) == "addmv" else node.args[:2]
    flow.multiply(node.name, [(None, max(prod(sizes_of_one(factor)) for factor in factors))])
    return flow.freeze_all(node, "a product with a vector is not followed")


def einsum(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Dimensions with one letter keep the same indices."""
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if "..." in equation or "->" not in equation or not isinstance(operands, (list, tuple)):
        count_call(flow, node)
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
        if letter not in result and sum(letter in term for term in terms) < 2:
            flow.freeze(labels, f"{node.name} sums over it")
        if letter not in result:
            flow.freeze_weights(node, labels)
    for term, operand in zip(terms, operands, strict=True):
        kept = [axis for axis, letter in enumerate(term) if letter in result]
        summed = [axis for axis, letter in enumerate(term) if letter not in result]
        if isinstance(operand, Node) and operand.name in flow.constants and kept and summed:
            flow.layer(operand, kept[-1], summed[0])
    _count_einsum(flow, node, terms, result, letters)
    return tuple(letters[letter] for letter in result)


def _count_einsum(flow: Flow, node: Node, terms: list[str], result: str, letters: dict[str, Array | None]) -> None:
    """Two operands at a time, as torch contracts them; where nothing is summed it is no product but a scaling."""
    operands = node.args[1]
    assert isinstance(operands, (list, tuple))
    size: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, extent in zip(term, sizes_of_one(operand), strict=True):
            size[letter] = max(extent, size.get(letter, 1))
    waiting = [set(term) for term in terms]
    while len(waiting) > 1:
        a, b = waiting.pop(0), waiting.pop(0)
        later = set(result).union(*waiting)
        if (a & b) - later:
            together = sorted((a & b) | ((a | b) & later))  # what one of them has alone is summed before
            flow.multiply(node.name, [(letters[letter], size[letter]) for letter in together])
        waiting.append((a | b) & later)


def attention(flow: Flow, node: Node) -> Dims | list[Dims]:
    """Query [..., T, D], key [..., S, D], value [..., S, E] -> [..., T, E]. D stays where the scale is 1/sqrt(D)."""
    nodes = [argument(node, name) for name in ("query", "key", "value")]
    query, key, value = (flow.dims(n) for n in nodes)
    one = [sizes_of_one(n) for n in nodes]
    heads, rows, columns = sizes_of_one(node)[:-2], one[0][-2], one[1][-2]
    if argument(node, "enable_gqa") or argument(node, "attn_mask") is not None:
        for size in (one[0][-1], one[2][-1]):
            flow.multiply(node.name, [(None, each) for each in (*heads, rows, columns, size)])
        return flow.freeze_all(node, "attention with a mask or with shared keys is not followed")
    for labels in (query[-2], key[-2], value[-2]):
        flow.freeze(labels, "it is a sequence")
    if argument(node, "scale") is None:
        for labels in (query[-1], key[-1]):
            flow.freeze(labels, "attention's scale depends on the width of a head")
    else:
        flow.labels.match(query[-1], key[-1], f"{node.name} reads a fixed width")
    lead = broadcast(
        flow,
        node,
        [(dims[:-2], sizes(n)[:-2]) for dims, n in zip((query, key, value), nodes, strict=True)],
        sizes(node)[:-2],
    )
    for width, size in ((query[-1], one[0][-1]), (value[-1], one[2][-1])):
        flow.multiply(node.name, [*zip(lead, heads, strict=True), (None, rows), (None, columns), (width, size)])
    return (*lead, None, value[-1])


def count_call(flow: Flow, node: Node) -> None:
    """The products inside an operator that is not followed (a recurrent layer): torch counts them, without data."""
    arguments = map_arg((node.args, dict(node.kwargs)), value_of_one)
    target = node.target
    assert callable(target)
    try:
        with torch.no_grad(), counted() as counter:
            target(*arguments[0], **arguments[1])
    except (NotImplementedError, RuntimeError):
        return  # its result's size depends on values, as that of `nonzero` does: no product is one of these
    macs = counter.get_total_flops() // 2
    if macs:
        flow.multiply(node.name, [(None, macs)])
