"""Times by node: reading the profile, joining it back to the file, and what bounds a node."""

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdc.core.errors import TargetError
from kdc.core.origins import write_origins
from kdc.core.spec import DeviceFile
from targets.node_events import Ran, read_events
from targets.node_join import Join, module_of
from targets.nodes import profile_nodes
from targets.roofline import Peaks, bound, parse_peaks

FLOAT = TensorProto.FLOAT


def kernel(name, ts, dur, index=0, operator="Relu", provider="CPUExecutionProvider"):
    arguments = {
        "op_name": operator,
        "provider": provider,
        "node_index": str(index),
        "activation_size": "8",
        "output_size": "4",
    }
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": arguments}


def run(ts, dur):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur}


def test_runs_of_the_warm_up_do_not_count():
    events = [run(0, 50), kernel("a", 1, 40), run(100, 20), kernel("a", 101, 10), run(200, 20), kernel("a", 201, 12)]
    found = read_events(events, 1)
    assert found.run_us == [20, 20]
    assert found.nodes == [Ran("a", "Relu", "CPUExecutionProvider", [10, 12], 12)]
    with pytest.raises(TargetError, match="no run"):
        read_events(events, 3)


def test_a_node_that_holds_others_is_charged_its_own_time_only():
    events = [run(0, 100), kernel("if", 10, 50, 0, "If"), kernel("in", 12, 30, 0), kernel("after", 60, 7, 1)]
    times = {node.name: node.own_us for node in read_events(events, 0).nodes}
    assert times == {"if": [20], "in": [30], "after": [7]}


def test_short_nodes_that_share_a_microsecond_hold_nothing():
    events = [run(0, 100), kernel("a", 10, 2, 0), kernel("b", 11, 1, 1)]
    assert [node.own_us for node in read_events(events, 0).nodes] == [[2], [1]]


def test_a_node_that_runs_in_rounds_counts_with_their_sum():
    events = [run(0, 100), kernel("loop", 1, 90, 0, "Loop"), kernel("in", 2, 20), kernel("in", 40, 25)]
    times = {node.name: node.own_us for node in read_events(events, 0).nodes}
    assert times == {"loop": [45], "in": [45]}


def named(op, inputs, output, name, scope=None, **attributes):
    node = helper.make_node(op, inputs, [output], name, **attributes)
    if scope is not None:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", *scope, name]))
    return node


@pytest.fixture
def residual(tmp_path):
    """Two convolutions with a skip, pooled and classified; every node knows its module but the pooling."""

    def weight(name, *shape):
        return numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype(np.float32), name)

    nodes = [
        named("Conv", ["x", "l1.conv.weight"], "a", "node_conv", ["l1", "l1.conv"], pads=[1] * 4),
        named("Relu", ["a"], "b", "node_relu", ["l1", "l1.relu"]),
        named("Conv", ["b", "l2.conv.weight"], "c", "node_conv_1", ["l2", "l2.conv"], pads=[1] * 4),
        named("Add", ["c", "b"], "d", "node_add", []),
        named("GlobalAveragePool", ["d"], "e", "node_pool"),
        named("Flatten", ["e"], "f", "node_flat"),
        named("Gemm", ["f", "fc.weight"], "y", "node_fc", ["fc"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", 10])],
        [weight("l1.conv.weight", 16, 3, 3, 3), weight("l2.conv.weight", 16, 16, 3, 3), weight("fc.weight", 10, 16)],
    )
    path = tmp_path / "residual.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return DeviceFile(path, "onnxruntime")


def ran(name, operator="Conv"):
    return Ran(name, operator, "CPUExecutionProvider", [1.0], 0)


def test_a_fused_node_stands_for_all_that_lies_before_its_value(residual):
    join = Join(onnx_ir.load(residual.path), None, 1)
    covered = join.covered(
        [ran("b_nchwc"), ran("c_nchwc"), ran("e_nchwc", "GlobalAveragePool"), ran("node_fc", "Gemm")]
    )
    names = [[node.name for node in one] for one in covered]
    assert names[0] == ["node_relu", "node_conv"]
    assert names[1] == ["node_conv_1"]
    assert names[2] == ["node_pool", "node_add"]
    assert names[3] == ["node_fc", "node_flat"]
    assert join.module(covered[0]) == "l1.conv"  # of the two, the one that does the work
    assert join.macs(covered[0]) == 32 * 32 * 16 * 3 * 9
    assert join.weight_bytes(covered[0]) == 16 * 3 * 9 * 4
    assert Join(onnx_ir.load(residual.path), None, 8).macs(covered[0]) == 8 * 32 * 32 * 16 * 3 * 9


def test_a_node_of_the_runtimes_own_stands_for_nothing(residual):
    assert Join(onnx_ir.load(residual.path), None, 1).covered([ran("ReorderOutput", "ReorderOutput")]) == [[]]


def test_values_that_the_optimized_graph_kept_are_trusted_before_names(residual):
    model = onnx_ir.load(residual.path)
    fused = onnx_ir.Node("com.microsoft", "FusedConv", inputs=[], name="odd")
    fused.outputs[0].name = "b"
    optimized = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[fused]), ir_version=10)
    (covered,) = Join(model, optimized, 1).covered([ran("odd", "FusedConv")])
    assert [node.name for node in covered] == ["node_relu", "node_conv"]


def test_a_module_is_told_by_scopes_by_the_older_exporters_names_or_by_a_weight():
    def node(name, scopes=None, weight=None):
        inputs = []
        if weight is not None:
            value = onnx_ir.Value(name=weight, const_value=onnx_ir.tensor(np.zeros(1, np.float32), name=weight))
            graph = onnx_ir.Graph([], [], nodes=[], initializers=[value])
            assert graph.initializers
            inputs = [value]
        made = onnx_ir.Node("", "Conv", inputs=inputs, name=name)
        if scopes is not None:
            made.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
        return made

    assert module_of(node("n", "['', 'layer1', 'layer1.0', 'conv2d']")) == "layer1.0"
    assert module_of(node("n", "['', 'add']")) is None
    assert module_of(node("/layer1/layer1.0/conv1/Conv")) == "layer1.0.conv1"
    assert module_of(node("n", "no list", "layer1.0.conv1.weight")) == "layer1.0.conv1"
    assert module_of(node("n")) is None


def test_a_real_profile_finds_every_module_and_all_the_work(device, residual):
    found = profile_nodes(residual, device, seconds=0.2, peaks=Peaks(flops_per_s=1e30, bytes_per_s=1e30))
    by_module = {node.module: node for node in found.nodes if node.module}
    assert {"l1.conv", "l2.conv", "fc"} <= by_module.keys()
    assert sum(node.macs or 0 for node in found.nodes) == 32 * 32 * 16 * 9 * (3 + 16) + 160
    assert sum(node.share for node in found.nodes) == pytest.approx(1)
    assert found.providers == {"CPUExecutionProvider": len(found.nodes)}
    assert found.fallback() == []
    assert by_module["l2.conv"].moved_bytes >= 4 * (2 * 16 * 32 * 32 + 16 * 16 * 9)
    assert {node.bound for node in found.nodes if node.time_us} == {"overhead"}  # no roof is near such peaks


def test_the_pass_of_a_layer_is_told_where_the_file_tells_it(device, residual):
    assert {node.made_by for node in profile_nodes(residual, device, seconds=0.1).nodes} == {None}
    model = onnx_ir.load(residual.path)
    write_origins(model, {"l1.conv": "prune", "fc": "quantize"})
    onnx_ir.save(model, residual.path)
    found = {node.module: node.made_by for node in profile_nodes(residual, device, seconds=0.1).nodes}
    assert (found["l1.conv"], found["fc"], found["l2.conv"]) == ("prune", "quantize", None)


def test_nodes_elsewhere_than_asked_are_told(device, residual):
    found = profile_nodes(residual, device, seconds=0.1)
    moved = found.nodes[0].model_copy(update={"provider": "OtherExecutionProvider"})
    assert found.model_copy(update={"nodes": (moved, *found.nodes[1:])}).fallback() == [moved]


def test_a_file_that_cannot_run_is_one_message(device, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(TargetError, match="cannot load"):
        profile_nodes(DeviceFile(tmp_path / "bad.onnx", "onnxruntime"), device)


PEAKS = Peaks(flops_per_s=100e9, bytes_per_s=10e9, int8_ops_per_s=400e9)


def test_the_longer_of_two_least_times_bounds_a_node():
    # 50 million multiply-accumulates take 1 ms at least, 1 MB takes 0.1 ms
    assert bound(50e6, 1e6, 1.1e-3, PEAKS) == "compute"
    assert bound(5e6, 10e6, 1.1e-3, PEAKS) == "memory"
    assert bound(0, 10e6, 1.1e-3, PEAKS) == "memory"
    assert bound(50e6, 1e6, 5.1e-3, PEAKS) == "overhead"
    assert bound(50e6, 1e6, 4.9e-3, PEAKS) == "compute"
    assert bound(50e6, 1e6, 1.3e-3, PEAKS, int8=True) == "overhead"  # 0.25 ms at least


def test_peaks_are_read_as_typed():
    assert parse_peaks("60e9,12e9") == Peaks(flops_per_s=60e9, bytes_per_s=12e9)
    assert parse_peaks("1,2,3").int8_ops_per_s == 3
    for bad in ("", "1", "1,x", "0,1", "-1,1", "1,2,0"):
        with pytest.raises(TargetError, match="--peaks"):
            parse_peaks(bad)
