"""Streams: which outputs are states, when a chunk is due and late, what the samples say. No time is judged."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kdc.cli.profile import profile
from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.job import Done
from targets.runtime import Port, batches_for
from targets.states import State, parse_states, states_of
from targets.stream import parse_chunk, sentence, streamed, summary
from targets.stream_work import CHUNKS_LEAST, Stream, run_chunks

MS = 10**6
WIDTH, HIDDEN = 12, 8


@pytest.fixture
def gru(tmp_path):
    """A GRU over chunks of 4 frames with its state, behind a convolution whose last frame is a state too."""

    def make(name="gru.onnx", rate=False):
        rng = np.random.default_rng(0)
        nodes = [
            helper.make_node("Concat", ["conv_cache", "frames"], ["joined"], axis=0),
            helper.make_node("Slice", ["joined", "last", "end", "axis"], ["next_conv_cache"]),
            helper.make_node("Slice", ["joined", "start", "minus_one", "axis"], ["before"]),
            helper.make_node("Add", ["before", "frames"], ["mixed"]),
            helper.make_node("GRU", ["mixed", "w", "r", "", "", "h0"], ["", "hn"], hidden_size=HIDDEN),
            helper.make_node("ReduceMean", ["hn"], ["speech"], keepdims=0),
        ]
        weights = [
            numpy_helper.from_array(rng.normal(0, 0.1, (1, 3 * HIDDEN, WIDTH)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(0, 0.1, (1, 3 * HIDDEN, HIDDEN)).astype(np.float32), "r"),
            *(
                numpy_helper.from_array(np.array([value]), name)
                for name, value in (("last", -1), ("end", 2**31), ("axis", 0), ("start", 0), ("minus_one", -1))
            ),
        ]
        inputs = [value("frames", (4, 1, WIDTH)), value("h0", (1, 1, HIDDEN)), value("conv_cache", (1, 1, WIDTH))]
        if rate:
            inputs.append(helper.make_tensor_value_info("rate", TensorProto.INT64, ()))
            nodes.append(helper.make_node("Identity", ["rate"], ["rate_again"]))
        outputs = [value("speech", ()), value("hn", (1, 1, HIDDEN)), value("next_conv_cache", (1, 1, WIDTH))]
        if rate:
            outputs.append(helper.make_tensor_value_info("rate_again", TensorProto.INT64, ()))
        graph = helper.make_graph(nodes, "gru", inputs, outputs, weights)
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return DeviceFile(path, "onnxruntime")

    return make


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def port(name, *shape, dtype="float32"):
    return Port(name, shape, dtype)


@pytest.mark.parametrize(
    ("output", "taken"),
    [("state_out", "state_in"), ("hn", "h0"), ("h_n", "h_0"), ("stateN", "state"), ("present.0", "past.0"),
     ("next_conv_cache", "conv_cache"), ("newHidden", "hidden"), ("cell2_out", "cell2_in")],
)  # fmt: skip
def test_the_ends_of_a_state_find_each_other_by_name(output, taken):
    inputs, outputs = [port("x", 1, 9), port(taken, 2, 1, 4)], [port("y", 1, 3), port(output, 2, 1, 4)]
    assert states_of(inputs, outputs, None) == ((1, 1),)


@pytest.mark.parametrize(
    ("output", "taken"),
    [("output", "input"), ("audio_out", "audio_in"), ("y", "x"), ("present.1", "past.10"), ("h2_out", "h1_in")],
)
def test_other_names_join_nothing(output, taken):
    inputs, outputs = [port("x", 1, 9), port(taken, 2, 1, 4)], [port(output, 2, 1, 4)]
    assert states_of(inputs, outputs, None) == ()


def test_names_join_no_ends_of_another_shape_or_type():
    inputs = [port("x", 1, 9), port("h_in", 1, 4), port("c_in", "batch", 4)]
    outputs = [port("h_out", 1, 5), port("c_out", "batch", 4, dtype="float16")]
    assert states_of(inputs, outputs, None) == ()
    free = [port("h_out", 1, 4), port("c_out", 1, 4)]
    assert states_of(inputs, free, None) == ((0, 1), (1, 2))  # a free size may turn out equal


def test_states_that_are_given_are_taken_as_they_are():
    inputs, outputs = [port("x", 1, 4), port("a", 1, 4)], [port("y", 1, 4), port("a_out", 1, 4)]
    assert states_of(inputs, outputs, (("y", "a"),)) == ((0, 1),)
    assert states_of(inputs, outputs, ()) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((("gone", "h_in"),), r"no output 'gone'\n  → its outputs: y, h_out"),
        ((("h_out", "gone"),), r"no input 'gone'\n  → its inputs: x, h_in"),
        ((("y", "h_in"),), r"the output is float32 \[1, 3\], the input takes float32 \[1, 4\]"),
        ((("h_out", "h_in"), ("wide", "x")), "every input of the model is a state"),
    ],
)
def test_states_that_do_not_fit_are_refused(given, message):
    inputs, outputs = [port("x", 1, 9), port("h_in", 1, 4)], [port("y", 1, 3), port("h_out", 1, 4)]
    with pytest.raises(TargetError) as error:
        states_of(inputs, [*outputs, port("wide", 1, 9)] if "every" in message else outputs, given)
    assert re.search(message, str(error.value))


def test_names_that_could_belong_to_two_states_are_asked_for():
    inputs, outputs = [port("x", 1), port("h", 1, 4)], [port("h_out", 1, 4), port("new_h", 1, 4)]
    with pytest.raises(TargetError, match="'h_out', 'new_h' could be ends of one state"):
        states_of(inputs, outputs, None)


def test_states_are_read_as_typed():
    assert parse_states([]) is None
    assert parse_states(["none"]) == ()
    assert parse_states(["hn=h0", "cn = c0"]) == (("hn", "h0"), ("cn", "c0"))
    for bad in (["hn"], ["=h0"], ["hn="], ["none", "hn=h0"]):
        with pytest.raises(TargetError, match="is no output with an input"):
            parse_states(bad)
    with pytest.raises(TargetError, match="the input 'h0' stands in two pairs"):
        parse_states(["hn=h0", "cn=h0"])


def test_chunks_are_read_as_typed():
    assert [parse_chunk(text) for text in ("10ms", "0.5s", "250us", " 32 ms")] == [10 * MS, 500 * MS, MS // 4, 32 * MS]
    for bad in ("", "0ms", "-10ms", "10", "ms", "10m", "nan", "0.0000001us"):
        with pytest.raises(TargetError, match="--stream"):
            parse_chunk(bad)


class Summing:
    """An engine whose state is the sum of all chunks so far."""

    inputs = (port("x", 1, 2), port("sum_in", 1, 2))
    outputs = (port("y", 1, 2), port("sum_out", 1, 2))

    def __init__(self, grows=False):
        self.given, self.grows = [], grows

    def run(self, inputs):
        self.given.append(inputs[1].copy())
        total = inputs[0] + inputs[1]
        return [inputs[0], np.concatenate([total, total]) if self.grows else total]


def test_what_a_chunk_gave_is_given_to_the_next():
    chunks = [[np.full((1, 2), k, np.float32)] for k in (1, 2, 3)]
    engine = Summing()
    one = Stream(engine, states_of(engine.inputs, engine.outputs, None), chunks, 1)
    one.first()
    one.forget()
    for position in range(5):
        one.step(position)
    # the first alone, then from zeros again; the chunks begin anew after the third, the state does not
    assert [int(given[0, 0]) for given in engine.given] == [0, 0, 1, 3, 6, 7]
    assert one.broken() == []
    chunks[0][0][:] = np.inf
    one.step(0)
    assert one.broken() == ["sum_out"]


def test_a_free_size_of_a_state_is_the_batch():
    engine = Summing()
    engine.inputs = (port("x", "batch", 2), port("sum_in", "?", 2))
    one = Stream(engine, (State(1, 1),), [[np.ones((3, 2), np.float32)]], 3)
    one.first()
    assert engine.given[0].tolist() == np.zeros((3, 2)).tolist()


def test_a_state_that_comes_back_in_another_shape_is_refused():
    engine = Summing(grows=True)
    one = Stream(engine, (State(1, 1),), [[np.zeros((1, 2), np.float32)]], 1)
    with pytest.raises(TargetError, match=r"came back as float32 \[2, 2\], and was given as float32 \[1, 2\]"):
        one.first()


class Clock:
    """Time that goes on by sleeping and by the work that is told."""

    def __init__(self, work_ms):
        self.now, self.work_ms, self.begun = 0, work_ms, []

    def step(self, position):
        self.begun.append(self.now / MS)
        self.now += round(self.work_ms[position] * MS)

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)

    def run(self, chunk_ms, seconds):
        found = run_chunks(self.step, chunk_ms * MS, seconds, clock=lambda: self.now, sleep=self.sleep)
        return [[ns / MS for ns in one] for one in found]


def test_a_paced_chunk_is_begun_when_it_is_due():
    clock = Clock([2] * 10)
    spent, answered = clock.run(10, 0.1)
    assert clock.begun == [10.0 * k for k in range(10)]
    assert spent == answered == [2.0] * 10


def test_one_who_is_too_slow_falls_behind_by_the_difference_at_each_chunk():
    clock = Clock([15] * 8)
    spent, answered = clock.run(10, 0.12)
    assert spent == [15.0] * 8
    assert answered == [15.0 + 5 * k for k in range(8)]


def test_a_slow_chunk_delays_those_that_follow_until_it_is_made_up_for():
    clock = Clock([2, 25, 2, 2, 2])
    _, answered = clock.run(10, 0.045)
    assert clock.begun == [0, 10, 35, 37, 40]
    assert answered == [2, 25, 17, 9, 2]


def test_back_to_back_nothing_is_waited_for_and_the_least_is_run():
    clock = Clock([50] * 5)
    spent, answered = clock.run(0, 0.01)
    assert spent == answered == [50.0] * CHUNKS_LEAST
    assert clock.begun == [0, 50, 100]


def done(spent_ms, answered_ms=None, **more):
    spent = tuple(round(ms * MS) for ms in spent_ms)
    return Done(
        spent_ns=spent, answered_ns=spent if answered_ms is None else tuple(ms * MS for ms in answered_ms), **more
    )


def test_the_factor_is_of_all_the_time_that_chunks_take():
    """One chunk of a hundred takes 101 times as long as the others: it doubles the factor, and not the median."""
    paced = [done([1] * 99 + [101])] * 3
    found = summary(Path("m.onnx"), 10 * MS, paced, [done([1] * 100)] * 3, {}, [])
    assert found.paced.real_time == pytest.approx(0.2)
    assert (found.paced.real_time_low, found.paced.real_time_high) == pytest.approx((0.2, 0.2))
    assert found.back_to_back.real_time == pytest.approx(0.1)
    assert (found.paced.median_ms, found.paced.worst_ms) == (1, 101)
    assert found.paced.p95_ms == pytest.approx(1)  # 300 chunks support it
    assert found.paced.p99_ms is None
    assert found.late == 3
    assert "3 of 300 were late" in sentence(found)


@pytest.mark.parametrize(
    ("spent_ms", "said"),
    [((2, 3, 2), "keeps up with"), ((12, 13, 12), "cannot keep up with"), ((9, 11, 10), "is at its")],
)
def test_the_verdict_is_of_the_whole_interval(spent_ms, said):
    paced = [done([ms] * 20) for ms in spent_ms]
    found = summary(Path("m.onnx"), 10 * MS, paced, paced, {}, ["warm"])
    assert sentence(found).startswith(f"m.onnx {said}")
    assert found.notes == ("warm",)


def test_a_chunk_is_late_by_when_it_was_due():
    paced = [done([2, 2, 2], [2, 10, 11])] * 3
    found = summary(Path("m.onnx"), 10 * MS, paced, paced, {}, [])
    assert (found.late, found.answer_worst_ms) == (3, 11)
    assert "none of 9 was late" in sentence(summary(Path("m.onnx"), 20 * MS, paced, paced, {}, []))


def test_a_state_that_is_no_number_is_noted():
    found = summary(Path("m.onnx"), MS, [done([1] * 3, broken=("hn",))] * 3, [done([1] * 3)] * 3, {}, [])
    assert found.notes == ("the state 'hn' was no number at the end: give real chunks by --samples",)


def test_an_input_without_dimensions_takes_one_number_in_every_batch():
    wanted = [port("x", "batch", 2), port("rate", dtype="int64")]
    rows = batches_for(wanted, [np.zeros((3, 2), np.float32), np.array(16000)], 1, np.random.default_rng(0))
    assert [row[1].tolist() for row in rows] == [16000] * 3
    with pytest.raises(TargetError, match="'rate' takes int64"):
        batches_for(wanted, [np.zeros((3, 2), np.float32), np.array(0.5)], 1, np.random.default_rng(0))


def test_a_real_stream_has_its_states_and_samples_of_both_kinds(device, gru):
    found = streamed(gru(), device, 2 * MS, seconds=0.1)
    assert found.states == (("hn", "h0"), ("next_conv_cache", "conv_cache"))
    for one, samples in ((found.paced, found.paced_ns), (found.back_to_back, found.back_to_back_ns)):
        assert one.n == sum(map(len, samples)) >= one.processes * CHUNKS_LEAST
        assert one.low_ms <= one.median_ms <= one.high_ms <= one.worst_ms
        assert one.real_time_low <= one.real_time <= one.real_time_high
    assert all(
        answered >= spent
        for pair in zip(found.answered_ns, found.paced_ns, strict=True)
        for answered, spent in zip(*pair, strict=True)
    )


app = typer.Typer()
app.command()(profile)


def run(*arguments, columns=80):
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_a_stream_is_a_table_of_80_columns_with_a_sentence(gru):
    shown = run(gru("a-long-name-of-a-voice-detector.onnx").path, "--stream", "2ms", "--seconds", "0.1").stdout
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    for wanted in ("real-time factor", "late chunks", "at the stream's pace", "back to back"):
        assert wanted in shown
    assert "hn to h0, next_conv_cache to conv_cache" in " ".join(shown.split())


def test_a_stream_takes_real_chunks_in_the_order_of_what_is_fed(gru, tmp_path):
    np.savez(tmp_path / "x.npz", frames=np.zeros((40, 1, WIDTH), np.float32), rate=np.array(16000))
    file = gru(rate=True).path
    found = run(file, "--stream", "2ms", "--seconds", "0.1", "--samples", tmp_path / "x.npz", "--json")
    assert json.loads(found.stdout)["chunk_ms"] == 2
    np.savez(tmp_path / "x.npz", frames=np.zeros((40, 1, WIDTH), np.float32))
    with pytest.raises(TargetError, match="the stream feeds frames, rate, and the samples have 1 arrays"):
        run(file, "--stream", "2ms", "--samples", tmp_path / "x.npz")


def test_the_page_of_a_stream_is_well_formed_and_has_its_figures(gru, tmp_path):
    page = tmp_path / "page.html"
    found = json.loads(run(gru().path, "--stream", "2ms", "--seconds", "0.1", "--html", page, "--json").stdout)
    text = page.read_text()
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert "States carried from one chunk to the next: hn to h0, next_conv_cache to conv_cache." in text
    assert f"{found['paced']['real_time']:.4g}" in text
    assert "://" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stream", "0ms"], "--stream 0ms: is no time"),
        (["--stream", "2ms", "--state", "gone=h0"], "no output 'gone'"),
        (["--stream", "2ms", "--state", "hn=conv_cache"], "the output is float32"),
        (["--stream", "2ms", "--nodes"], "are of runs one by one\n.*leave them out, or --stream"),
        (["--sustained", "1s", "--html", "page.html"], "--html draws runs"),
        (["--state", "hn=h0"], "--state is of a stream's chunks"),
        (["--stream", "2ms", "--sustained", "1s"], "one of them at a time"),
        (["--stream", "2ms", "--batches", "1,2"], "one of them at a time"),
    ],
)
def test_what_cannot_be_streamed_is_said_at_once(gru, arguments, message):
    with pytest.raises(TargetError, match=message):
        run(gru().path, *arguments)
