"""Which nodes ran where on a target of several providers: what fell back to the CPU is told."""

import json

import onnxruntime
import pytest
from test_profile_command import run

from kdc.core.errors import TargetError
from targets.measure import Settings, compare
from targets.nodes import profile_nodes
from targets.placement import UNKNOWN, Placement, placed_elsewhere, placement_of
from targets.runtime import runtime_of

# Azure's provider is in every build for Linux and Windows, starts without an account, and takes no node of a plain model.
IDLE = "AzureExecutionProvider"


@pytest.fixture
def idle(device):
    """A target whose preferred provider is there, starts, and takes nothing."""
    if IDLE not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of onnxruntime has no {IDLE}")
    return device.model_copy(update={"name": "idle", "providers": (IDLE,)})


@pytest.fixture
def profile_of_idle(idle, tmp_path):
    path = tmp_path / "idle.toml"
    path.write_text(
        f'name = "idle"\nsummary = "s"\nruntime = "onnxruntime"\nthreads = 1\nopset = 21\nproviders = ["{IDLE}"]\n'
    )
    return path


def on(device, *providers):
    return device.model_copy(update={"providers": providers})


def test_nodes_are_counted_by_provider_in_the_profiles_order_the_most_frequent_operator_first(device):
    told = (
        ("CPUExecutionProvider", "TopK", 1),
        ("CUDAExecutionProvider", "Resize", 2),
        ("TensorrtExecutionProvider", "Conv", 20),
        ("CPUExecutionProvider", "NonZero", 3),
        ("TensorrtExecutionProvider", "Relu", 19),
    )
    found = placement_of(told, on(device, "TensorrtExecutionProvider", "CUDAExecutionProvider"))
    assert [*found.nodes] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert found.fallen() == {"CUDAExecutionProvider": {"Resize": 2}, "CPUExecutionProvider": {"NonZero": 3, "TopK": 1}}
    said = "nodes: 39 of 45 on Tensorrt; fell back: 2 on CUDA (2 Resize); 4 on CPU (3 NonZero, TopK)"
    assert found.sentence() == said


def test_all_in_the_preferred_provider_and_none_in_it_are_said_as_such(device):
    cuda = on(device, "CUDAExecutionProvider")
    assert placement_of((("CUDAExecutionProvider", "Conv", 4),), cuda).sentence() == "nodes: all 4 on CUDA"
    lost = placement_of((("CPUExecutionProvider", "com.microsoft::Gelu", 1),), cuda)
    assert lost.sentence() == "nodes: none of 1 on CUDA; fell back: 1 on CPU (com.microsoft::Gelu)"


def test_a_runtime_that_cannot_tell_is_said_not_to(device):
    assert placement_of((), on(device, "CUDAExecutionProvider")).sentence() == UNKNOWN


def test_a_target_of_the_cpu_alone_is_not_looked_at(device, linear):
    assert not placed_elsewhere(device)
    assert not placed_elsewhere(on(device, "CPUExecutionProvider"))
    assert not placed_elsewhere(device.model_copy(update={"runtime": "openvino", "providers": ("NPU",)}))
    assert placed_elsewhere(on(device, "XnnpackExecutionProvider", "CPUExecutionProvider"))
    quick = Settings(seconds=0.1, processes_min=3, slice_seconds=0.02)
    assert compare(linear()[0], None, device, settings=quick).candidate.placement is None


def test_a_silent_fallback_is_shown_by_the_command_and_in_its_json(profile_of_idle, linear):
    file = linear()[0].path
    shown = run("profile", file, "--target", profile_of_idle, "--seconds", "0.1", "--no-cold").stdout
    assert "nodes: none of 1 on Azure; fell back: 1 on CPU (MatMul)" in shown.splitlines()
    both = run("profile", file, "--against", file, "--target", profile_of_idle, "--seconds", "0.1", "--no-cold").stdout
    assert both.count("linear.onnx nodes: none of 1 on Azure") == 2
    found = json.loads(
        run("profile", file, "--target", profile_of_idle, "--seconds", "0.1", "--no-cold", "--json").stdout
    )
    assert found["candidate"]["placement"] == {"asked": [IDLE], "nodes": {"CPUExecutionProvider": {"MatMul": 1}}}


def test_times_by_node_are_of_the_profiles_providers_too(idle, linear):
    found = profile_nodes(linear()[0], idle, seconds=0.05)
    assert found.asked == (IDLE,)
    assert len(found.fallback()) == len(found.nodes) > 0


def test_a_provider_that_the_build_lacks_is_named_by_every_way_into_the_runtime(device, linear):
    file, _ = linear()
    absent = on(device, "TensorrtExecutionProvider")
    for ask in (
        lambda: runtime_of(absent).placement(file, absent),
        lambda: runtime_of(absent).load(file, absent),
        lambda: profile_nodes(file, absent, seconds=0.05),
    ):
        with pytest.raises(TargetError, match=r"has no TensorrtExecutionProvider; it has .*CPUExecutionProvider"):
            ask()


def test_the_placement_in_a_report_is_read_back_as_it_was():
    found = Placement(asked=("A",), nodes={"A": {"Conv": 1}})
    assert Placement.model_validate_json(found.model_dump_json()) == found
