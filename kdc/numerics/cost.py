"""What an ONNX graph costs on paper: its parameters and the multiply-accumulates of one sample."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx_ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from onnxscript.optimizer import fold_constants

from kdc.core.errors import ModelError

# Inputs that say how a tensor is quantized: not parameters, so that a model counts the same before and after.
_QUANTIZERS: dict[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
}
# A shape, an axis or an index stands in these; a weight never does.
_NO_WEIGHTS = frozenset(
    {onnx_ir.DataType.INT64, onnx_ir.DataType.UINT64, onnx_ir.DataType.BOOL, onnx_ir.DataType.STRING}
)

_BODIES = frozenset({onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS})


def count(model: onnx_ir.Model) -> tuple[int, int]:
    """Count the parameters, and the multiply-accumulates of one sample.

    Parameters are the elements of all initializers that can be weights: integers of 64 bits (shapes, axes), truth
    values, scales and zero points are left out, so that quantizing does not change the number. Multiply-accumulates are
    those of convolutions, transposed convolutions, matrix products, einsum, attention and recurrent layers, in float or
    quantized; a bias, an activation or a normalization is not counted, as is the field's habit. A product of weights
    alone is none of a sample's: runtimes compute it once, at load. Every free size counts as 1: a batch of one. Both
    branches of an `If` and the body of a `Loop` count once each: the longest way of an early exit counts in full.

    The model is left as it was.

    Returns: parameters, multiply-accumulates.

    Raises: ModelError where a shape that the count needs cannot be inferred.
    """
    model = with_shapes(model)
    parameters = sum(
        math.prod(_shape(value, None))
        for graph in model.graphs()
        for value in graph.initializers.values()
        if _is_weight(value)
    )
    return parameters, sum(node_macs(node) for node in _of_a_sample(model))


def with_shapes(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy whose functions are inlined and whose values have shapes, where they can be inferred; free sizes are 1."""
    model = model.clone()
    InlinePass()(model)
    _fix_free_sizes(model)
    _infer(model)
    unknown = [value for value in _outputs(model) if _sizes(value) is None]
    if unknown:
        found = _where_sizes_are_computed(model)
        for value in unknown:
            if value.name in found:
                value.shape = found[value.name]
    return model


def _infer(model: onnx_ir.Model) -> None:
    """Put a shape wherever one can be inferred.

    A contradiction in shapes that a product needs shows where it is counted, with the node's name; elsewhere it does not
    matter.
    """
    # ONNX infers no shape behind a group normalization, which keeps its input's as an instance normalization does.
    norms = [node for node in _nodes(model) if node.op_type == "GroupNormalization" and not node.domain]
    for node in norms:
        node.op_type = "InstanceNormalization"
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    for node in _nodes(model):  # the pass may have put nodes of its own in the place of these
        if node.op_type == "InstanceNormalization" and "num_groups" in node.attributes:
            node.op_type = "GroupNormalization"


def _where_sizes_are_computed(model: onnx_ir.Model) -> dict[str | None, onnx_ir.Shape]:
    """The shapes behind nodes that compute sizes (torch's recurrent layers are exported with such), by the value's name.

    Inference follows a computed size through some operators only. With all sizes of the inputs fixed it is a constant.
    """
    folded = model.clone()
    with _quiet():
        fold_constants(folded, onnx_shape_inference=True, should_fold=_computes_sizes)
    _infer(folded)
    return {value.name: onnx_ir.Shape(sizes) for value in _outputs(folded) if (sizes := _sizes(value)) is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the folding says of sizes that no model can have; the shape that is then missing is told."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _computes_sizes(node: onnx_ir.Node) -> bool:
    return all(value.dtype == onnx_ir.DataType.INT64 for value in node.outputs)


def _outputs(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    return (value for node in _nodes(model) for value in node.outputs)


def _sizes(value: onnx_ir.Value) -> list[int] | None:
    """Of each dimension; None where one is not known."""
    if value.shape is None:
        return None
    known = [size for size in value.shape if isinstance(size, int)]
    return known if len(known) == len(value.shape) else None


def _nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    return iter(onnx_ir.traversal.RecursiveGraphIterator(model.graph))


def _of_a_sample(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """The nodes that depend on the model's inputs, or on chance."""
    given = {id(value) for value in model.graph.inputs}
    constants: set[int] = set()
    for node in _nodes(model):
        fixed = all(
            value is None or id(value) in constants or (value.is_initializer() and id(value) not in given)
            for value in node.inputs
        )
        bodies = any(attribute.type in _BODIES for attribute in node.attributes.values())
        if fixed and not bodies and not node.op_type.startswith(("Random", "Bernoulli")):
            constants.update(id(value) for value in node.outputs)
        else:
            yield node


def _fix_free_sizes(model: onnx_ir.Model) -> None:
    """Put 1 for every free size that the inputs name; forget shapes that hold another, to be inferred anew."""
    free = {str(size) for value in model.graph.inputs for size in value.shape or () if not isinstance(size, int)}
    values = [*model.graph.inputs, *model.graph.outputs, *_outputs(model)]
    inputs = set(model.graph.inputs)
    for value in values:
        if value.shape is None:
            continue
        sizes = [size if isinstance(size, int) else 1 if str(size) in free else None for size in value.shape]
        if value in inputs:
            value.shape = onnx_ir.Shape([1 if size is None else size for size in sizes])
        else:
            value.shape = None if None in sizes else onnx_ir.Shape([size for size in sizes if size is not None])


def _is_weight(value: onnx_ir.Value) -> bool:
    if value.dtype in _NO_WEIGHTS:
        return False
    uses = value.uses()
    return not uses or any(index not in _QUANTIZERS.get(node.op_type, frozenset()) for node, index in uses)


def _shape(value: onnx_ir.Value | None, node: onnx_ir.Node | None) -> list[int]:
    sizes = None if value is None else _sizes(value)
    if sizes is None:
        name = "a missing input" if value is None else f"'{value.name}'"
        where = "" if node is None else f" of {node.op_type} '{node.name}'"
        raise ModelError(
            f"the shape of {name}{where} cannot be inferred, so that its multiply-accumulates cannot be counted",
            do="export the model with fixed sizes, but for the batch",
        )
    return sizes


def node_macs(node: onnx_ir.Node) -> int:
    """The multiply-accumulates of one node of a model that `with_shapes` gave; bodies of it count for their own nodes.

    Raises: ModelError where a shape that the count needs is not known.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    try:
        return rule(node)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # too few sizes, inputs or attributes
        raise ModelError(
            f"{node.op_type} '{node.name}' has inputs or attributes that do not fit it, so that its multiply-accumulates"
            " cannot be counted",
            do="export the model again",
        ) from error


def _conv(weight: int) -> Callable[[onnx_ir.Node], int]:
    """Every output element takes the products of one filter: weight is [out, in / groups, kernel...]."""

    def rule(node: onnx_ir.Node) -> int:
        return math.prod(_shape(node.outputs[0], node)) * math.prod(_shape(node.inputs[weight], node)[1:])

    return rule


def _conv_transpose(node: onnx_ir.Node) -> int:
    """Every input element is spread through one filter: weight is [in, out / groups, kernel...]."""
    return math.prod(_shape(node.inputs[0], node)) * math.prod(_shape(node.inputs[1], node)[1:])


def _gemm(node: onnx_ir.Node) -> int:
    transposed = node.attributes.get_int("transA", 0)
    return math.prod(_shape(node.outputs[0], node)) * _shape(node.inputs[0], node)[0 if transposed else -1]


def _matmul(node: onnx_ir.Node) -> int:
    return math.prod(_shape(node.outputs[0], node)) * _shape(node.inputs[0], node)[-1]


def _fused_matmul(node: onnx_ir.Node) -> int:
    depth = _shape(node.inputs[0], node)[-2 if node.attributes.get_int("transA", 0) else -1]
    return math.prod(_shape(node.outputs[0], node)) * depth


def _einsum(node: onnx_ir.Node) -> int:
    """One product for every index of all letters together, where any is summed over; else it is a scaling."""
    inputs, arrow, result = node.attributes.get_string("equation").replace(" ", "").partition("->")
    terms, letters_in = inputs.split(","), inputs.replace(",", "").replace(".", "")
    summed = {letter for letter in letters_in if (letter not in result if arrow else letters_in.count(letter) > 1)}
    if len(terms) == 1 or not summed:
        return 0
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, node.inputs, strict=True):
        shape = _shape(operand, node)
        before, dots, after = term.partition("...")
        spread = len(shape) - len(before) - len(after) if dots else 0  # what "..." stands for, counted from its end
        letters = [*before, *(f".{place}" for place in range(spread, 0, -1)), *after]
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _recurrent(node: onnx_ir.Node) -> int:
    """Every step of every sequence takes all weights once: X [steps, batch, in], W and R [directions, gates * h, ...]."""
    x, weight, recurrence = (_shape(value, node) for value in node.inputs[:3])
    return x[0] * x[1] * (math.prod(weight) + math.prod(recurrence))


def _attention(node: onnx_ir.Node) -> int:
    """Queries by keys, and weights by values: [batch, heads, steps, width], or [batch, steps, heads * width]."""
    query, key, value = (_shape(value, node) for value in node.inputs[:3])
    past = node.inputs[4] if len(node.inputs) > 4 else None
    keys = key[-2] + (0 if past is None else _shape(past, node)[-2])
    if len(query) == 4:
        read = math.prod(query[:3]) * value[3]
    else:
        share = node.attributes.get_int("q_num_heads", 1) / node.attributes.get_int("kv_num_heads", 1)
        read = round(math.prod(query[:2]) * value[2] * share)
    return keys * (math.prod(query) + read)


# The fused ones are what onnxruntime writes into a file that it has optimized.
_RULES: dict[str, Callable[[onnx_ir.Node], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _fused_matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
}
