"""The most that a machine reaches by its runtime: products of large matrices, and an operator on more than caches hold."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from targets.predictor.builder import IR_VERSION, OPSET
from targets.predictor.clock import Timer
from targets.roofline import Peaks

SIDE = 768  # of the square matrices; both of them and the product stay in the last cache
MOVED_FLOATS = 24 * 2**20  # 96 MiB in and as much out: more than the caches of processors at the edge
CLOCK_READS = 10_000


def measure_peaks(device: Device, folder: Path, timer: Timer) -> Peaks:
    """Peak rates of float32 and int8 products, and of memory."""
    paths = [folder / f"peak{index}.onnx" for index in range(3)]
    for path, model in zip(paths, (_float_product(), _integer_product(), _move()), strict=True):
        onnx.save(model, path)
    floats, integers, moved = (
        min(timer([DeviceFile(path, device.runtime)], device)[0]) for path in paths
    )  # one by one: the caches of the products are not those that the move has emptied; the least, for a peak is the most
    operations = 2 * SIDE**3
    return Peaks(
        flops_per_s=operations / floats * 1e3,
        int8_ops_per_s=operations / integers * 1e3,
        bytes_per_s=2 * 4 * MOVED_FLOATS / moved * 1e3,
    )


def timer_ns() -> float:
    """The smallest step that the clock was seen to make, by its reading back to back."""
    reads = np.array([time.perf_counter_ns() for _ in range(CLOCK_READS)])
    steps = np.diff(reads)
    return (
        float(steps[steps > 0].min())
        if (steps > 0).any()
        else float(time.get_clock_info("perf_counter").resolution * 1e9)
    )


def _float_product() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    return _model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [SIDE, SIDE],
        TensorProto.FLOAT,
        TensorProto.FLOAT,
        [("w", weight)],
    )


def _integer_product() -> onnx.ModelProto:
    weight = np.random.default_rng(0).integers(-127, 128, (SIDE, SIDE), np.int8)
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"])]
    return _model(nodes, [SIDE, SIDE], TensorProto.UINT8, TensorProto.INT32, [("w", weight)])


def _move() -> onnx.ModelProto:
    return _model(
        [helper.make_node("Neg", ["x"], ["y"])], [MOVED_FLOATS // 1024, 1024], TensorProto.FLOAT, TensorProto.FLOAT, []
    )


def _model(
    nodes: list[onnx.NodeProto], shape: list[int], read: int, written: int, constants: list[tuple[str, np.ndarray]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info("x", read, shape)],
        [helper.make_tensor_value_info("y", written, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
