"""Files that do more work for some inputs: how they are told, and what their times say. No time is judged tightly."""

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kdc.cli.main import app
from kdc.core.errors import TargetError
from kdc.core.observe import Progress
from kdc.core.spec import DeviceFile
from kdc.numerics.cost import count
from targets.cost import cost_of
from targets.measure import Settings, measure
from targets.measured import Measured
from targets.over_inputs import InputTimes, over_inputs
from targets.quick import quick_latencies
from targets.skips import skips

WIDTH, LAYERS = 128, 40
SHORT = Settings(seconds=0.5, processes_min=3, processes_max=3, slice_seconds=0.05)


def chain(layers, source="x", output="y"):
    names = [source, *(f"{output}{k}" for k in range(1, layers)), output]
    return [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]


def value(name, kind=TensorProto.FLOAT, shape=("batch", WIDTH)):
    return helper.make_tensor_value_info(name, kind, shape)


def saved(path, nodes, constants=(), inputs=("x",)):
    weight = np.random.default_rng(0).normal(0, 1 / 8, (WIDTH, WIDTH)).astype(np.float32)
    weights = [numpy_helper.from_array(weight, "w"), *(numpy_helper.from_array(np.array(v), n) for n, v in constants)]
    graph = helper.make_graph(nodes, "graph", [value(name) for name in inputs], [value("y")], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return DeviceFile(path, "onnxruntime")


def branch(condition, short=(), long=(), output="y"):
    """An If whose one side gives x, and whose other side multiplies it 40 times."""
    sides = {
        "then_branch": helper.make_graph(
            [*short, helper.make_node("Identity", ["x"], [f"{output}_then"])], "then", [], [value(f"{output}_then")]
        ),
        "else_branch": helper.make_graph(
            [*long, *chain(LAYERS, output=f"{output}_else")], "else", [], [value(f"{output}_else")]
        ),
    }
    return helper.make_node("If", [condition], [output], **sides)


FIRST_IS_POSITIVE = [
    helper.make_node("Gather", ["x", "zero"], ["row"], axis=0),
    helper.make_node("Gather", ["row", "zero"], ["first"], axis=0),
    helper.make_node("Cast", ["zero"], ["threshold"], to=TensorProto.FLOAT),
    helper.make_node("Greater", ["first", "threshold"], ["easy"]),
]
ZERO = [("zero", np.int64(0))]


@pytest.fixture
def exits(tmp_path):
    """A file that leaves x as it is where x[0, 0] > 0, and multiplies it 40 times otherwise."""
    return saved(tmp_path / "exits.onnx", [*FIRST_IS_POSITIVE, branch("easy")], ZERO)


@pytest.fixture
def plain(tmp_path):
    """A file of half the multiplications, for every input."""
    return saved(tmp_path / "plain.onnx", chain(LAYERS // 2))


def mixed(n, hard):
    """Inputs [n, 128] of which those that are `hard` take the 40 multiplications."""
    x = np.abs(np.random.default_rng(1).normal(size=(n, WIDTH))).astype(np.float32)
    x[:, 0] = np.where(hard, -1, 1)
    return x


def test_a_condition_that_follows_from_the_input_makes_a_file_skip(exits, plain):
    assert skips([exits.path])
    assert not skips([plain.path])


def test_an_if_within_a_branch_is_found(tmp_path):
    """Only the inner condition is computed."""
    inner = [*FIRST_IS_POSITIVE, branch("easy", output="inner")]
    assert skips([saved(tmp_path / "nested.onnx", [branch("yes", short=inner)], [*ZERO, ("yes", True)]).path])


def test_a_condition_of_constants_or_shapes_skips_nothing(tmp_path):
    constant = helper.make_node("Not", ["no"], ["yes"])
    assert not skips([saved(tmp_path / "constant.onnx", [constant, branch("yes")], [("no", False)]).path])
    by_shape = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], axis=0),
        helper.make_node("Greater", ["rows", "zero"], ["some"]),
        branch("some"),
    ]
    assert not skips([saved(tmp_path / "shape.onnx", by_shape, ZERO).path])


@pytest.mark.parametrize(("rounds", "until", "found"), [("n", "go", False), ("of_x", "go", True), ("n", "of_y", True)])
def test_a_loop_skips_where_its_rounds_or_its_end_follow_from_the_input(tmp_path, rounds, until, found):
    """It runs three times, or as often as x says, or until the carried sum is below 0."""
    last = {"go": helper.make_node("Identity", ["go_in"], ["go_out"])}
    last["of_y"] = helper.make_node("Greater", ["sum", "no"], ["go_out"])
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "carried"], ["carried_out"]),
            helper.make_node("ReduceSum", ["carried"], ["sum"], keepdims=0),
            last[until],
        ],
        "body",
        [value("k", TensorProto.INT64, ()), value("go_in", TensorProto.BOOL, ()), value("carried")],
        [value("go_out", TensorProto.BOOL, ()), value("carried_out")],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["of_x"], to=TensorProto.INT64),
        helper.make_node("Loop", [rounds, "go", "x"], ["y"], body=body),
    ]
    constants = [("n", np.int64(3)), ("go", True), ("no", np.float32(0))]
    assert skips([saved(tmp_path / "loop.onnx", nodes, constants).path]) is found


def test_a_condition_within_a_function_is_found(tmp_path):
    file = saved(tmp_path / "called.onnx", [helper.make_node("Exit", ["x", "w"], ["y"], domain="ours")])
    model = onnx.load(file.path)
    nodes = [helper.make_node("Constant", [], ["zero"], value_int=0), *FIRST_IS_POSITIVE, branch("easy")]
    versions = [helper.make_opsetid("", 21)]
    model.functions.append(helper.make_function("ours", "Exit", ["x", "w"], ["y"], nodes, versions))
    model.opset_import.append(helper.make_opsetid("ours", 1))
    onnx.save(model, file.path)
    assert skips([file.path])


def test_a_cascade_skips_and_costs_the_sum_of_its_stages(tmp_path):
    stages = [saved(tmp_path / "a.onnx", chain(2)), saved(tmp_path / "b.onnx", chain(3))]
    listed = tmp_path / "cascade.json"
    listed.write_text("{}")
    paths = [listed, *(stage.path for stage in stages)]
    assert skips(paths)
    file, runtime = DeviceFile(listed, "onnxruntime"), SimpleNamespace(suffix=".onnx", files=lambda file: tuple(paths))
    sha256, size, parameters, macs = cost_of(file, runtime)
    assert size == sum(path.stat().st_size for path in paths)
    counts = [count(onnx_ir.load(stage.path)) for stage in stages]
    assert (parameters, macs) == (2 * WIDTH**2, 5 * WIDTH**2) == tuple(map(sum, zip(*counts, strict=True)))
    listed.write_text("{ }")
    assert cost_of(file, runtime)[0] != sha256


def test_the_mean_lies_between_the_branches_and_tells_the_mix(device, exits, plain):
    """Of the three mixes the median of the second could be either branch's; the means are in order."""
    measured = {
        share: measure([exits], plain, device, [mixed(100, np.arange(100) % 100 < share)], SHORT)
        for share in (0, 50, 100)
    }
    easy, half, hard = (one.candidates[0].latency.mean_ms for one in measured.values())
    assert easy < half < hard
    one = measured[50]
    assert one.skips == (False, True)
    assert one.baseline.latency.mean_ms is None
    latency = one.candidates[0].latency
    assert latency.mean_low_ms <= latency.mean_ms <= latency.mean_high_ms
    assert one.ratio(0).ratio < measured[0].ratio(0).ratio
    assert Measured.model_validate_json(one.model_dump_json()) == one
    assert all(len(block) == 3 * 40 for process in one.samples_ns[1] for block in process)


def test_ranking_takes_the_mean_too(device, exits):
    easy, hard = (quick_latencies([exits], device, [mixed(100, np.arange(100) < n)], 0.05)[0] for n in (0, 40))
    assert hard > 1.5 * easy  # the median input is easy in both


def test_no_real_inputs_is_noted_where_the_work_depends_on_them(device, exits, plain):
    assert any("no real ones" in note for note in measure([], exits, device, settings=SHORT).notes)
    assert not any("no real ones" in note for note in measure([], plain, device, settings=SHORT).notes)


def test_every_input_has_its_own_time(device, exits, plain):
    n = 120  # two blocks and a rest
    hard = np.random.default_rng(3).random(n) < 0.3
    events = []
    times = over_inputs([exits, plain], device, [mixed(n, hard)], processes=3, emit=events.append)
    assert np.shape(times.ms) == (2, 3, n)
    assert times.of(0).shape == (n,)
    assert np.median(times.of(0)[hard]) > 2 * np.median(times.of(0)[~hard])
    assert times.median_ms(0) < times.mean_ms(0)
    assert times.paths == (exits.path, plain.path)
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3]
    apart = times.ratio(0, 0, hard, ~hard)
    assert apart.value > 2
    assert apart.low <= apart.value <= apart.high
    assert InputTimes.model_validate_json(times.model_dump_json()) == times


def test_a_file_against_a_copy_of_itself_takes_about_as_long(device, exits):
    x = mixed(60, np.arange(60) % 2 == 0)
    times = over_inputs([exits, exits], device, [x], processes=3)
    assert times.ratio(0, 0) == (1.0, 1.0, 1.0)
    assert 0.5 < times.ratio(0, 1).value < 2


def made(ms):
    return InputTimes(paths=("a", "b"), environment={}, notes=(), ms=ms)


def test_the_ratio_is_of_means_by_process():
    """Each process is slower than the last one by its own factor, which leaves the ratio as it is."""
    times = made([[[f, 2 * f, 9 * f] for f in (1.0, 1.5, 2.0)], [[f, f, f] for f in (1.0, 1.5, 2.0)]])
    assert times.ratio(0, 1) == pytest.approx((4, 4, 4))
    chosen = np.array([True, True, False])
    assert times.ratio(0, 1, chosen, chosen).value == pytest.approx(1.5)
    assert times.ratio(0, 0, ~chosen, chosen).value == pytest.approx(6)
    assert (times.mean_ms(0), times.median_ms(0)) == pytest.approx((6, 3))
    assert times.p95_ms(0) is None


def test_a_tail_has_its_percentile_where_the_inputs_support_it():
    times = made([[list(range(1, 202))] * 2] * 2)
    assert times.p95_ms(0) == pytest.approx(191)


@pytest.mark.parametrize("mask", [np.ones(2, bool), np.zeros(3, bool), np.array([0, 1, 2])])
def test_a_mask_that_chooses_no_inputs_of_these_is_refused(mask):
    with pytest.raises(TargetError, match=r"give bool \[3\]"):
        made([[[1.0, 2.0, 3.0]] * 2] * 2).ratio(0, 1, mask)


@pytest.mark.parametrize("inputs", [[], [np.zeros((0, WIDTH))], [np.zeros((3, WIDTH)), np.zeros((4, WIDTH))]])
def test_inputs_of_unequal_length_are_refused(device, plain, inputs):
    with pytest.raises(TargetError, match="same number of samples"):
        over_inputs([plain], device, inputs)


def test_one_process_is_refused(device, plain):
    with pytest.raises(ValueError, match="give no interval"):
        over_inputs([plain], device, [np.zeros((3, WIDTH))], processes=1)


def test_a_file_of_a_fixed_batch_is_refused(device, linear):
    file, _ = linear(free=4)
    with pytest.raises(TargetError, match="each is to be timed alone"):
        over_inputs([file], device, [np.zeros((8, 8), np.float32)], processes=2)


def test_a_profile_shows_the_mean_in_80_columns(exits, tmp_path):
    np.save(tmp_path / "x.npy", mixed(60, np.arange(60) % 2 == 0))
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app,
        ["profile", str(exits.path), "--seconds", "0.5", "--samples", str(tmp_path / "x.npy")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert "mean over inputs, ms" in result.stdout
    assert "the mean over its inputs" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
