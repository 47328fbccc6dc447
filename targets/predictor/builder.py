"""Small ONNX graphs with random weights, written node by node: what the calibration runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
OPSET, IR_VERSION = 21, 10
HELD_SCALE = 0.05
# Whose shapes are written down, as exporters do: the runtime fuses a sum with the norm behind it only where it knows both
# shapes. Their first axis is the batch wherever blocks add one.
_DESCRIBED = frozenset({"Add", "MatMul", "Gather", "LayerNormalization"})


class Builder:
    """Adds nodes and remembers each value's shape; `macs` counts what the blocks multiply.

    free: the batch is a name in the inputs, as in files that take any; the shapes kept here are those of a batch of 1.
    quantized: weights are int8, a scale for each channel, and what blocks hold is uint8, both written as pairs of
    QuantizeLinear and DequantizeLinear. The scales are made up: a kernel's time does not depend on them.
    """

    def __init__(self, generator: np.random.Generator, *, free: bool = True, quantized: bool = False) -> None:
        self.generator = generator
        self.free = free
        self.quantized = quantized
        self.shapes: dict[str, Shape] = {}
        self.macs = 0
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._described: list[str] = []

    def input(self, shape: Shape, kind: int = TensorProto.FLOAT) -> str:
        """A graph input, [1, ...]."""
        name = f"input{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, kind, self._named(shape)))
        self.shapes[name] = shape
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """An initializer."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        self.shapes[name] = array.shape
        return name

    def scalar(self, value: float) -> str:
        """A float32 constant without axes."""
        return self.constant(np.array(value, np.float32))

    def weight(self, *shape: int, axis: int = 0) -> str:
        """Random numbers that keep a signal's scale: sums do not overflow, and none becomes denormal, which is slow.

        axis: of the outputs; the rest is what is summed over.
        """
        spread = 1.4 / math.sqrt(max(1, math.prod(shape) // shape[axis]))
        values = self.generator.standard_normal(shape, np.float32)
        if not self.quantized:
            return self.constant(values * np.float32(spread))
        whole = np.clip(np.rint(values * 40), -127, 127).astype(np.int8)
        scales = np.full(shape[axis], spread / 40, np.float32)
        terms = [self.constant(whole), self.constant(scales), self.constant(np.zeros(shape[axis], np.int8))]
        return self.add("DequantizeLinear", terms, shape, axis=axis)

    def bias(self, count: int) -> str:
        """Zeros."""
        if not self.quantized:
            return self.constant(np.zeros(count, np.float32))
        scales = self.constant(np.full(count, HELD_SCALE / 40, np.float32))
        zeros = self.constant(np.zeros(count, np.int32))
        return self.add("DequantizeLinear", [zeros, scales, zeros], (count,), axis=0)

    def held(self, x: str, *, positive: bool = False) -> str:
        """A value as it is handed on: through uint8 where quantized, with the zero point of what is never negative."""
        if not self.quantized:
            return x
        scale, zero = self.constant(np.array(HELD_SCALE, np.float32)), np.array(0 if positive else 128, np.uint8)
        terms = [scale, self.constant(zero)]
        return self.add(
            "DequantizeLinear", [self.add("QuantizeLinear", [x, *terms], self.shapes[x]), *terms], self.shapes[x]
        )

    def add(self, operator: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """A node with one output of this shape; the output's name."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], name=f"n{len(self._nodes)}", **attributes))
        self.shapes[name] = shape
        if operator in _DESCRIBED:
            self._described.append(name)
        return name

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes,
            "sample",
            self._inputs,
            [self._value(name) for name in outputs],
            self._constants,
            value_info=[self._value(name) for name in self._described if name not in outputs],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, self._named(self.shapes[name]))

    def _named(self, shape: Shape) -> list[int | str]:
        return ["batch", *shape[1:]] if self.free else list(shape)
