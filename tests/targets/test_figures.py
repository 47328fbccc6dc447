"""The figures as they are read."""

from pathlib import Path

from targets.figures import judged, rows, verdict
from targets.latency import Latency
from targets.measured import Comparison, Profile
from targets.ratio import Ratio


def profile(name, mean_ms=None, cold=None):
    latency = Latency(
        n=40, processes=2, median_ms=2, low_ms=1.9, high_ms=2.1, p90_ms=2.2, p99_ms=None, load_ms=3, first_ms=4,
        mean_ms=mean_ms,
    )  # fmt: skip
    if mean_ms is not None:
        latency = latency.model_copy(update={"mean_low_ms": mean_ms - 0.1, "mean_high_ms": mean_ms + 0.1})
    return Profile(
        path=Path(name), sha256="0" * 64, size_mb=1, latency=latency, peak_memory_mb=1, parameters=1, macs=None, cold=cold
    )  # fmt: skip


def compared(candidate, baseline=None, ratio=None, reached="precision"):
    return Comparison(
        candidate=candidate, baseline=baseline, ratio=ratio, reached=reached, environment={}, notes=(), samples_ns=()
    )


def test_a_figure_that_no_file_has_is_left_out_and_one_that_some_have_is_blank_for_the_others():
    names = [name for name, *_ in rows(compared(profile("a.onnx")))]
    assert "mean over inputs, ms" not in names
    assert "cold median, ms" not in names
    found = list(rows(compared(profile("a.onnx", mean_ms=1.5), profile("b.onnx", cold=profile("b").latency))))
    assert ("mean over inputs, ms", "1.5", "") in found
    assert ("  95% interval", "1.4 – 1.6", "") in found
    assert ("cold median, ms", "", "2") in found
    assert ("thousand MACs", "unknown", "unknown") in found


def test_a_verdict_is_told_by_a_number_above_one():
    slower = Ratio(ratio=0.5, low=0.4, high=0.8, verdict="slower")
    assert judged(slower, "a", "b") == "a is slower than b, 2 times [1.25, 2.5]"
    equal = Ratio(ratio=1.001, low=0.99, high=1.01, verdict="no detectable difference")
    assert judged(equal, "a", "b") == "no detectable difference between a and b (times 1.001 [0.990, 1.010])"


def test_a_verdict_says_that_the_time_was_over_and_that_a_mean_is_one():
    assert verdict(compared(profile("a.onnx"))) == "a.onnx: 2 ms"
    told = verdict(compared(profile("a.onnx", mean_ms=1.5), reached="time"))
    assert told.startswith("a.onnx: 1.5 ms, the mean over its inputs; time was over")
