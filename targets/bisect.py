"""Where a runtime's answers part from ONNX's own definition: the first node that computes something else.

All values between the nodes are made outputs of the file, which the target's runtime then builds and runs. Each node is
evaluated by ONNX's reference implementation on the very inputs that it had in the runtime, so that what an earlier node
got wrong is not charged to the later ones, and rounding does not add up along a quantized graph.

A value that is an output cannot be fused away. Where the file's answers differ and no node does by itself, the runtime's
fusion of nodes is what remains, and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.cascade import is_cascade
from targets.door.admit import admit
from targets.runtime import Array, feeds, running

TOLERANCE = 1e-4
"""Of a value's own root mean square: float32 sums in another order differ by some 1e-6, Winograd's transforms by 1e-5."""
STEP = 1.0
"""Of integers: a tie that is rounded otherwise is one step off."""

Values = Mapping[str, Array]


@dataclass(frozen=True)
class Divergence:
    """A node whose value differs from the reference on the same inputs.

    error: the largest difference, of floats as a share of the value's root mean square, of integers in steps. module: the
    torch module that it is of, where its weights tell, else empty.
    """

    node: str
    operator: str
    value: str
    error: float
    allowed: float
    module: str


@dataclass(frozen=True)
class Bisection:
    """What was found. error: the largest of the file's outputs, against the reference run from the inputs on.

    unchecked: nodes that the reference does not know, or that hold graphs of their own.
    """

    first: Divergence | None
    error: float
    nodes: int
    unchecked: tuple[str, ...]


def bisect(
    path: Path, device: Device, samples: Sequence[Array] | None = None, *, tolerance: float = TOLERANCE, seed: int = 0
) -> Bisection:
    """Find the first node of an ONNX file whose value in the device's runtime is not what ONNX defines.

    Args: samples: real inputs, one array [n, ...] for each of the file's inputs; the first batch is used. Random where
    None. tolerance: of float values, as a share of their root mean square.

    Raises: TargetError where the file is none, or the runtime is absent, cannot take it or cannot run here.
    """
    if is_cascade(path):
        raise TargetError(f"{path}: is a cascade, and one graph is looked at", do="name one of its stages' files")
    admit(path)
    model = onnx.load(path)
    whole = _reference(model)
    with scratch_folder("bisect") as folder:
        given, answers = _run(model, folder / "whole", device, samples, seed)
        _, values = _run(_exposed(model), folder / "exposed", device, list(given.values()), seed)
    off_by = 0.0
    if whole is not None:
        names = [output.name for output in model.graph.output]
        expected = dict(zip(names, whole.run(names, dict(given)), strict=True))
        off_by = max(_error(answers[name], expected[name])[0] for name in names)
    known = {**given, **{one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}, **values}
    unchecked: list[str] = []
    for node in model.graph.node:
        found = _local(node, model, known)
        if found is None:
            unchecked.append(node.name or node.op_type)
            continue
        for name, expected_value in found.items():
            off, integers = _error(known[name], expected_value)
            allowed = STEP if integers else tolerance
            if off > allowed:
                first = Divergence(node.name, node.op_type, name, off, allowed, _module(node, model))
                return Bisection(first, off_by, len(model.graph.node), tuple(unchecked))
    return Bisection(None, off_by, len(model.graph.node), tuple(unchecked))


def _run(
    model: onnx.ModelProto, folder: Path, device: Device, samples: Sequence[Array] | None, seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One batch's inputs and outputs by name, in the device's runtime."""
    runtime = running(device)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    engine = runtime.load(runtime.build(folder / "model.onnx", folder, device), device)
    batch = feeds(engine, samples, device.batch, np.random.default_rng(seed), limit=1)[0]
    given = {port.name: array for port, array in zip(engine.inputs, batch, strict=True)}
    return given, {port.name: array for port, array in zip(engine.outputs, engine.run(batch), strict=True)}


def _exposed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every value between its nodes as an output too."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    there = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in there:
                whole.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return whole


def _reference(model: onnx.ModelProto) -> Any:
    """ONNX's own evaluator, None where it does not know an operator."""
    try:
        return ReferenceEvaluator(model)
    except Exception:  # it raises whatever an operator's class does; the nodes are then looked at one by one
        return None


def _local(node: onnx.NodeProto, model: onnx.ModelProto, known: Values) -> dict[str, Array] | None:
    """What the reference makes of a node's own inputs; None where it cannot."""
    if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
        return None  # which reads values of the graph around it
    inputs = [name for name in dict.fromkeys(node.input) if name]
    outputs = [name for name in node.output if name and name in known]
    if any(name not in known for name in inputs):
        return None
    empty = onnx.helper.make_empty_tensor_value_info
    graph = onnx.helper.make_graph([node], "one", [empty(n) for n in inputs], [empty(n) for n in outputs])
    alone = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )
    evaluator = _reference(alone)
    if evaluator is None:
        return None
    try:
        return dict(zip(outputs, evaluator.run(outputs, {name: known[name] for name in inputs}), strict=True))
    except Exception:  # a form of an operator that the reference lacks: the node is told as unchecked
        return None


def _error(found: Array, expected: Array) -> tuple[float, bool]:
    """The largest difference, and whether it is counted in integers' steps; infinite where shapes or types differ."""
    expected = np.asarray(expected)
    if found.shape != expected.shape or not np.isfinite(np.asarray(expected, np.float64)).all():
        same = found.shape == expected.shape and np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
        return (0.0 if same else float("inf")), False
    if found.size == 0:
        return 0.0, False
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    largest = float(np.abs(a - b).max())
    if expected.dtype.kind in "iub":
        return largest, expected.dtype.itemsize == 1 and expected.dtype.kind != "b"
    return largest / (float(np.sqrt(np.mean(b**2))) or 1.0), False


def _module(node: onnx.NodeProto, model: onnx.ModelProto) -> str:
    """The torch module whose weights the node reads, or a DequantizeLinear before it: exported weights keep their names."""
    weights = {one.name for one in model.graph.initializer}
    sources = {name: one for one in model.graph.node for name in one.output}
    names = list(node.input)
    names += [before for name in node.input if name in sources for before in sources[name].input[:1]]
    for name in names:
        for ending in (".weight", ".bias", ".weight.values", ".bias.values"):
            if name in weights and name.endswith(ending):
                return str(name.removesuffix(ending))
    return ""
