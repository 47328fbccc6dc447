"""Sustained load and sweeps: what windows add up to, and real runs of a second."""

from pathlib import Path

import pytest

from kdc.core.errors import TargetError
from targets.energy import Recorder
from targets.sizes import check_batches, parse_sizes, sweep
from targets.sustained import parse_seconds, sentences, summary, sustain
from targets.sustained_run import Windows


def windows(rates, width=2.0, start=1000.0):
    ends = [start + width * (index + 1) for index in range(len(rates))]
    return Windows(start=start, ends=tuple(ends), runs=tuple(round(rate * width) for rate in rates))


def test_rates_are_runs_by_time_and_the_onset_is_in_seconds():
    found = summary(Path("m.onnx"), 4, windows([500] * 60 + [400] * 60), Recorder(None), ["hot"])
    assert found.seconds == 240
    assert (found.first_per_s, found.last_per_s) == (500, 400)
    assert found.throttling.onset_s == pytest.approx(120, abs=6)
    said = "\n".join(sentences(found))
    assert "-20.0%" in said
    assert "batches of 4" in said
    assert "throttling: from 1" in said
    assert "energy: not available here" in said
    assert "note: hot" in said


def test_none_is_said_where_none_is_seen():
    assert "throttling: none seen" in sentences(summary(Path("m.onnx"), 1, windows([500] * 60), Recorder(None), []))


def test_times_are_read_as_typed():
    assert [parse_seconds(text) for text in ("10m", "90s", "1.5h", "30", ".5s")] == [600, 90, 5400, 30, 0.5]
    for bad in ("", "m", "0s", "-1s", "10d", "1m30", "nan"):
        with pytest.raises(TargetError, match="--sustained"):
            parse_seconds(bad)


def test_a_real_run_fills_its_windows(device, linear):
    found = sustain(linear()[0], device, 1.2)
    assert 1.2 <= found.seconds < 5
    assert len(found.rates_per_s) == len(found.ends_s) >= 10
    assert all(rate > 0 for rate in found.rates_per_s)


def test_sizes_are_read_as_typed():
    assert parse_sizes("4,1, 2,1", "--batches") == (1, 2, 4)
    for bad in ("", "1,", "0", "-1", "a", "1.5"):
        with pytest.raises(TargetError, match="--threads"):
            parse_sizes(bad, "--threads")


def test_a_sweep_has_a_point_for_each_pair(device, linear):
    points = sweep(lambda at: linear()[0], device, (1, 8), (1,), seconds=0.5)
    assert [(point.batch, point.threads) for point in points] == [(1, 1), (8, 1)]
    for point in points:
        assert point.low_ms <= point.median_ms <= point.high_ms
        assert point.per_s == pytest.approx(1e3 * point.batch / point.median_ms)


def test_more_threads_than_the_machine_has_are_refused(device, linear):
    with pytest.raises(TargetError, match="--threads 99999"):
        sweep(lambda at: linear()[0], device, (1,), (99999,))


def test_a_fixed_batch_cannot_be_swept():
    check_batches([("batch", 8)], (1, 2))
    check_batches([(4, 8)], (4,))
    with pytest.raises(TargetError, match="fixed at 1"):
        check_batches([(1, 8)], (1, 2))
