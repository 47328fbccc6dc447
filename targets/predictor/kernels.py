"""What a runtime really runs for a model: one Kernel for every node that is left after its own fusions.

The runtime is asked, not imitated: ONNX Runtime writes down the graph that it has optimized, with its layouts and padded
channels, and one run under its profiler tells every value's shape, those that only a run can know too. No time is read
here: the profiler costs some microseconds a node, which is as much as a small kernel takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.onnxruntime import OrtEngine
from targets.runtime import feeds, first_line, must_exist

Shape = tuple[int, ...]
_BYTES = {
    "float": 4,
    "double": 8,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint8": 1,
    "int8": 1,
    "bool": 1,
}
_PICKING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})  # read no more than they write
_CONTROL = frozenset({"If", "Loop", "Scan"})  # their time is that of the nodes within


@dataclass(frozen=True)
class Kernel:
    """One node as the runtime runs it.

    kind: kernels of one kind share a curve of times; sizes: what that curve runs over, each at least 1; macs:
    multiply-accumulates, those on padded channels too, those on a map's padding not; bytes of activations read and
    written, and of constants read; passing_bytes: of all constants and of all that is written in one run, which pass between
    two reads of this kernel's constants, and so decide from which cache these come.
    """

    name: str
    kind: str
    sizes: Mapping[str, float] = field(hash=False)
    macs: int
    read_bytes: int
    weight_bytes: int
    written_bytes: int
    passing_bytes: int = 0


@dataclass(frozen=True)
class _Value:
    shape: Shape
    item: int
    constant: bool
    blocked: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.item


def read_kernels(model: Path | onnx_ir.Model, device: Device) -> tuple[Kernel, ...]:
    """The kernels of one run of an ONNX model at the device's batch, in the order of execution.

    Free sizes other than the batch are an error, as in measuring without samples.

    Raises: TargetError where the runtime cannot load or run it.
    """
    if device.runtime != "onnxruntime":
        raise TargetError(f"target {device.name}: kernels can be read of onnxruntime alone, not of {device.runtime}")
    with scratch_folder("kernels") as folder:
        path = model if isinstance(model, Path) else _saved(model, folder)
        events, graph, inputs = _run_once(path, device, folder)
    return _kernels(events, graph, inputs)


def _saved(model: onnx_ir.Model, folder: Path) -> Path:
    onnx_ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def _run_once(
    path: Path, device: Device, folder: Path
) -> tuple[list[Mapping[str, Any]], onnx_ir.Graph, dict[str, _Value]]:
    import onnxruntime

    must_exist(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base of their own
        raise TargetError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from error
    engine = OrtEngine(session)
    batch = feeds(engine, None, device.batch, np.random.default_rng(0), limit=1)[0]
    engine.run(batch)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [
        event["args"] | {"node": event["name"].removesuffix("_kernel_time")} for event in events if _is_kernel(event)
    ]
    graph = onnx_ir.load(folder / "optimized.onnx").graph
    inputs = {
        port.name: _Value(array.shape, array.itemsize, False) for port, array in zip(engine.inputs, batch, strict=True)
    }
    return ran, graph, inputs


def _is_kernel(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")


def _kernels(
    events: Sequence[Mapping[str, Any]], graph: onnx_ir.Graph, inputs: dict[str, _Value]
) -> tuple[Kernel, ...]:
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(graph))
    in_order = [node.op_type for node in nodes] == [event["op_name"] for event in events]
    by_name = {node.name: node for node in nodes}
    values = dict(inputs)
    for scope in {id(node.graph): node.graph for node in nodes if node.graph is not None}.values():
        for name, value in scope.initializers.items():
            if value.shape is not None and value.dtype is not None:
                values[name] = _Value(value.shape.numpy(), max(1, math.ceil(value.dtype.itemsize)), True)
    found = []
    for place, event in enumerate(events):
        outputs = [_described(entry) for entry in event["output_type_shape"]]
        node = nodes[place] if in_order else by_name.get(event["node"])
        if node is None or node.op_type != event["op_name"]:
            node = None
            read = [_described(entry) for entry in event["input_type_shape"]]
        else:
            read = [values.get(value.name or "", _UNKNOWN) if value is not None else _ABSENT for value in node.inputs]
            blocked = node.domain == "com.microsoft.nchwc" and node.op_type != "ReorderOutput"
            named = [value.name or "" for value in node.outputs if value.name]
            for name, output in zip(named, outputs, strict=False):
                values[name] = _Value(output.shape, output.item, False, blocked)
        if event["op_name"] not in _CONTROL:
            found.append(_kernel(event["op_name"], event["node"], node, read, outputs))
    passing = sum(kernel.weight_bytes + kernel.written_bytes for kernel in found)
    return tuple(replace(kernel, passing_bytes=passing) for kernel in found)


_UNKNOWN = _Value((), 4, False)
_ABSENT = _Value((0,), 4, False)


def _described(entry: Mapping[str, Sequence[int]]) -> _Value:
    kind, shape = next(iter(entry.items()))
    return _Value(tuple(shape), _BYTES.get(kind, 4), False)


def _kernel(
    operator: str, name: str, node: onnx_ir.Node | None, inputs: Sequence[_Value], outputs: Sequence[_Value]
) -> Kernel:
    rule = _RULES.get(operator, _other)
    kind, sizes, macs = (
        rule(operator, node, inputs, outputs) if node is not None else _other(operator, node, inputs, outputs)
    )
    written = sum(value.bytes for value in outputs)
    return Kernel(
        name=name,
        kind=kind,
        sizes={key: max(1, size) for key, size in sizes.items()},
        macs=macs,
        read_bytes=written if operator in _PICKING else sum(value.bytes for value in inputs if not value.constant),
        weight_bytes=0 if operator in _PICKING else sum(value.bytes for value in inputs if value.constant),
        written_bytes=written,
    )


_Found = tuple[str, dict[str, float], int]


def _conv(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    """A convolution, float or quantized: kinds by what its kernel is written for."""
    x, weight = inputs[0], inputs[3 if operator == "QLinearConv" else 1]
    groups = node.attributes.get_int("group", 1)
    strides = node.attributes.get_ints("strides", [1])
    filters, depth = weight.shape[0], weight.shape[1]
    last = bool(node.attributes.get_int("channels_last", 0))
    out = outputs[0].shape
    area = out[1:-1] if last else out[2:]
    before = x.shape[1:-1] if last else x.shape[2:]
    taps = _taps(weight.shape[2:], strides, node, before, area)
    macs = round(math.prod(out[:1]) * math.prod(area) * filters * depth * taps)
    sizes: dict[str, float] = {
        "rows": math.prod((*out[:1], *area[:-1])), "columns": area[-1], "taps": taps, "stride": strides[0],
        "outputs": filters,
    }  # fmt: skip
    name = _SAME.get(operator, operator)
    name = f"nchwc.{name}" if node.domain == "com.microsoft.nchwc" else name
    if groups > 1 and depth == 1:
        shape = "depthwise"
    elif groups > 1:
        shape, sizes = "grouped", sizes | {"inputs": depth, "groups": groups}
    else:
        shape, sizes = "pointwise" if math.prod(weight.shape[2:]) == 1 else "full", sizes | {"inputs": depth}
    if node.domain == "com.microsoft.nchwc" and not x.blocked and shape in ("full", "pointwise"):
        shape = "from NCHW"  # a map of too few channels for a block: its kernel reads channel by channel, pointwise too
    summed = len(inputs) > 3 and operator != "QLinearConv" and inputs[3] is not _ABSENT
    costly = node.attributes.get_string("activation", "") not in ("", "Relu", "Clip", "LeakyRelu")
    return f"{name} {shape}", sizes | {"sum": 2 if summed else 1, "activation": 2 if costly else 1}, macs


def _taps(
    kernel: Sequence[int], strides: Sequence[int], node: onnx_ir.Node, before: Sequence[int], after: Sequence[int]
) -> float:
    """How many of a filter's points lie on the map in the mean: on small maps many lie on its padding, and are skipped."""
    rank = len(kernel)
    pads = node.attributes.get_ints("pads", [0] * rank)
    apart = node.attributes.get_ints("dilations", [1] * rank)
    mean = 1.0
    for axis, (width, size, out) in enumerate(zip(kernel, before, after, strict=True)):
        step = strides[axis] if axis < len(strides) else 1
        on = sum(
            0 <= place * step - pads[axis] + tap * apart[axis] < size for place in range(out) for tap in range(width)
        )
        mean *= on / max(1, out)
    return mean


def _product(second: int) -> Any:
    """A matrix product: with constants, the columns' weights are packed beforehand; with two activations they are not."""

    def rule(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
        a, b, out = inputs[0], inputs[second], outputs[0].shape
        columns = out[-1]
        turned = node.attributes.get_int("transA", 0)
        inner = a.shape[-2 if turned else -1]
        elements = outputs[0].size
        macs = elements * inner
        if b.constant:
            active = node.attributes.get_string("activation", "") not in ("", "Relu")
            sizes: dict[str, float] = {
                "rows": elements // columns, "columns": columns, "inner": inner, "activation": 1 + active,
            }  # fmt: skip
            return f"{_SAME.get(operator, operator)} by constants", sizes, macs
        rows = out[-2] if len(out) > 1 else 1
        sizes = {"products": elements // (rows * columns), "rows": rows, "columns": columns, "inner": inner}
        return f"{operator}{' by transposed' if node.attributes.get_int('transB', 0) else ''}", sizes, macs

    return rule


def _rows(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    """Work along the last axis: normalizations and softmax."""
    width = inputs[0].shape[-1]
    return operator, {"rows": inputs[0].size // width, "width": width}, 0


def _transpose(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    """The run of elements that stay together, and how many; axes of size 1 move nothing."""
    shape = inputs[0].shape
    order = [axis for axis in node.attributes.get_ints("perm", tuple(reversed(range(len(shape))))) if shape[axis] > 1]
    if order == sorted(order):
        return "Transpose of nothing", {"elements": inputs[0].size}, 0
    run, rest = 1, sorted(order)
    while order and order[-1] == rest[-1]:
        run *= shape[order.pop()]
        rest.pop()
    kind = "Transpose within rows" if run == 1 else "Transpose of rows"
    return kind, {"elements": inputs[0].size // run, "run": run}, 0


def _pool(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    taps = math.prod(node.attributes.get_ints("kernel_shape", [1]))
    name = f"nchwc.{operator}" if node.domain == "com.microsoft.nchwc" else operator
    return name, {"elements": outputs[0].size, "taps": taps}, 0


def _reduction(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    kept = outputs[0].size
    return operator, {"elements": kept, "reduced": inputs[0].size // max(1, kept)}, 0


def _reorder(operator: str, node: onnx_ir.Node, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    return f"nchwc.{operator}", {"elements": outputs[0].size, "width": outputs[0].shape[-1]}, 0


def _other(operator: str, node: onnx_ir.Node | None, inputs: Sequence[_Value], outputs: Sequence[_Value]) -> _Found:
    """Anything else: its elements, and whether it spreads an operand that is smaller than the result.

    A few elements at most, as in sums on shapes, cost the node alone whatever it does.
    """
    elements = max((value.size for value in (*inputs, *outputs)), default=1)
    if elements <= 16:
        return "any on a few elements", {}, 0
    out = max((value.size for value in outputs), default=1)
    spread = len(outputs) == 1 and any(1 < value.size < out for value in inputs) and len(inputs) > 1
    scalar = (
        len(outputs) == 1 and any(value.size == 1 and value is not _UNKNOWN for value in inputs) and len(inputs) > 1
    )
    if operator in _BINARY and (spread or scalar):
        shape = outputs[0].shape
        small = next(value for value in inputs if value.size < out)
        name = _SAME.get(operator, operator)
        if small.size == 1:
            return f"{name} of a scalar", {"elements": out}, 0
        along = small.shape[-1] > 1
        # constant along the last axes: the width is how many elements share one value
        width = shape[-1] if along else out // small.size
        return f"{name} {'of a row' if along else 'of a column'}", {"elements": out, "width": width}, 0
    return _SAME.get(operator, operator), {"elements": out}, 0


# What differs in its name alone: an activation is a size of its own, and a sum takes as long as a product.
_SAME = {"FusedConv": "Conv", "FusedGemm": "Gemm", "Mul": "Add", "Sub": "Add"}
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "QLinearAdd", "QLinearMul"})
_RULES: dict[str, Any] = {
    **dict.fromkeys(("Conv", "FusedConv", "QLinearConv", "ConvInteger", "NhwcFusedConv"), _conv),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger"), _product(1)),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _product(1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), _product(3)),
    **dict.fromkeys(("LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax"), _rows),
    **dict.fromkeys(("MaxPool", "AveragePool", "NhwcMaxPool", "QLinearAveragePool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool"), _reduction),
    "QLinearGlobalAveragePool": _reduction,
    **dict.fromkeys(("ReorderInput", "ReorderOutput"), _reorder),
    "Transpose": _transpose,
}  # fmt: skip
