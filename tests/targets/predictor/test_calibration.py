"""A calibration's file, what it is refused for, its estimates, and the whole way on a made-up machine."""

import json
import math
import tempfile

import onnx
import pytest
from typer.testing import CliRunner

from kdc.cli.main import app
from kdc.core.errors import TargetError
from targets.predictor.calibrate import Effort, calibrate, check
from targets.predictor.calibration import Calibration, default_path, known_peaks, load, machine_of, save
from targets.predictor.fit import Measured
from targets.predictor.kernels import Kernel, read_kernels
from targets.predictor.predict import UNKNOWN_NODE_NS, estimate, predict
from targets.predictor.samples import reference, whole
from targets.predictor.table import COSTS, Curve, Smoothness, Table
from targets.roofline import Peaks


@pytest.fixture
def calibration(device):
    """One kind of kernel, at 1000 ns and 2 ns a multiply-accumulate, measured at 64 rows, 64 columns and 64 inner."""
    costs = tuple({"node": 1000.0, "macs in steps of 1": 2.0}.get(name, 0.0) for name in COSTS)
    curve = Curve(sizes=("columns", "inner", "rows"), costs=costs, places=((6.0, 6.0, 6.0),), weights=(0.0,))
    return Calibration(
        device=device.name,
        machine=machine_of(device),
        peaks=Peaks(flops_per_s=100e9, int8_ops_per_s=300e9, bytes_per_s=10e9),
        timer_ns=30,
        reference_ms=1,
        run_noise=0.01,
        ratio_noise=0.01,
        graphs=1,
        seconds=1,
        checks={},
        notes=(),
        table=Table(run_ns=5000, smoothness=Smoothness(), noise=0.01, curves={"product": curve}),
    )


def kernel(kind, rows, macs):
    return Kernel("n", kind, {"rows": rows, "columns": 64, "inner": 64}, macs, 4000, 4000, 2000)


def test_an_estimate_sums_its_kernels_and_says_that_it_is_none_measured(calibration):
    found = estimate((kernel("product", 64, 1000), kernel("product", 64, 500)), calibration)
    assert found.ms == pytest.approx((5000 + 1000 + 2000 + 1000 + 1000) / 1e6)
    assert found.source == "estimated"
    assert (found.covered, found.unknown, found.far) == (1, (), ())


def test_an_unknown_kernel_is_named_and_not_covered(calibration):
    found = estimate((kernel("product", 64, 1000), kernel("new", 64, 3000)), calibration)
    assert (found.covered, found.unknown) == (0.25, ("new",))
    # its bytes take longer than its products: 10,000 bytes at 10 GB/s
    assert found.kernels[1].ms == pytest.approx((UNKNOWN_NODE_NS + 1000) / 1e6)


def test_a_kernel_far_from_all_measured_sizes_is_named_and_not_covered(calibration):
    found = estimate((kernel("product", 2**30, 1000),), calibration)
    assert (found.covered, found.far) == (0, ("product",))


def test_a_file_comes_back_as_it_was(calibration, device, tmp_path):
    save(calibration, tmp_path / "deep" / "file.json")
    assert load(device, tmp_path / "deep" / "file.json") == calibration


def test_the_default_place_is_in_the_users_cache(device, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path(device) == tmp_path / "kdc" / "calibration" / "cpu-ort.json"


@pytest.mark.parametrize(
    ("field", "other"), [("cpu", "Another CPU"), ("version", "0.0.1"), ("threads", 7), ("batch", 5)]
)
def test_another_machines_calibration_is_refused(calibration, device, tmp_path, field, other):
    machine = calibration.machine.model_copy(update={field: other})
    save(calibration.model_copy(update={"machine": machine}), tmp_path / "file.json")
    with pytest.raises(TargetError) as refused:
        load(device, tmp_path / "file.json")
    assert f"calibrated elsewhere: {field} {other!r}, here" in str(refused.value)
    assert "kdc targets calibrate cpu-ort" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 99}', "\x00"])
def test_a_file_that_is_none_is_refused(device, tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(TargetError, match="is not a calibration"):
        load(device, tmp_path / "file.json")


def test_a_missing_calibration_says_how_to_make_one(device, tmp_path):
    with pytest.raises(TargetError, match="nothing was calibrated yet\n  → kdc targets calibrate cpu-ort"):
        load(device, tmp_path / "file.json")


def test_a_check_compares_shares_and_orders(calibration):
    networks = [
        Measured((kernel("product", 64, macs),), (6000 + 2 * macs) / factor)
        for macs, factor in ((10_000, 1.1), (20_000, 0.9), (30_000, 1.0))
    ]
    found = check(calibration.table, networks)
    assert found.median_error == pytest.approx(0.1)
    assert found.kendall_tau == 1


class Fake:
    """Kernels that cost by a formula, on a clock that changes from process to process, with some blocks disturbed."""

    def __init__(self):
        self.calls = 0

    def __call__(self, files, device):
        self.calls += 1
        clock = 1.0 + 0.3 * math.sin(self.calls)
        found = [[clock * self.ms(read_kernels(file.path, device))] * 3 for file in files]
        for place, row in enumerate(found):
            if (self.calls + place) % 7 == 0:
                row[self.calls % 3] *= 1.5
        return found

    @staticmethod
    def ms(kernels):
        moved = sum(kernel.read_bytes + kernel.weight_bytes + kernel.written_bytes for kernel in kernels)
        return (4000 + 700 * len(kernels) + 0.02 * sum(kernel.macs for kernel in kernels) + 0.02 * moved) / 1e6


@pytest.mark.slow
def test_a_made_up_machine_is_calibrated_to_a_few_percent(device, tmp_path):
    # without the peaks' large products, whose reading takes long: they are timed by the same fake
    fake = Fake()
    found = calibrate(device, Effort(minutes=5, graphs_most=180), timer=fake)
    assert found.graphs >= 180
    assert found.checks["all"].median_error < 0.08
    assert found.checks["all"].kendall_tau > 0.9
    assert found.machine == machine_of(device)
    onnx.save(whole("resnet", (99, 0)), tmp_path / "model.onnx")
    estimated = predict(tmp_path / "model.onnx", found, device)
    # the clock of a whole process is the reference's too, so it is in no ratio; the level is that of the middle
    onnx.save(reference(), tmp_path / "reference.onnx")
    ratio = fake.ms(read_kernels(tmp_path / "model.onnx", device)) / fake.ms(
        read_kernels(tmp_path / "reference.onnx", device)
    )
    assert estimated.ms / found.reference_ms == pytest.approx(ratio, rel=0.15)
    assert found.run_noise > 0.1 > 10 * found.ratio_noise
    assert json.loads(estimated.model_dump_json())["source"] == "estimated"


def test_an_interrupted_calibration_leaves_what_was_there(calibration, device, monkeypatch, tmp_path):
    def interrupted(files, device):
        raise KeyboardInterrupt

    import targets.predictor.clock as module

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(module, "timed", interrupted)
    save(calibration, tmp_path / "c.json")
    done = CliRunner().invoke(app, ["targets", "calibrate", "cpu-ort", "--out", str(tmp_path / "c.json")])
    assert done.exit_code == 130
    assert load(device, tmp_path / "c.json") == calibration
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "temporary"]
    assert not list((tmp_path / "temporary").iterdir())


def test_a_file_that_cannot_be_written_whole_is_not_begun(calibration, tmp_path):
    (tmp_path / "c.json").mkdir()  # nothing can take this name
    with pytest.raises(TargetError, match=r"c\.json: cannot be written"):
        save(calibration, tmp_path / "c.json")
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_peaks_are_known_once_this_machine_is_calibrated(calibration, device, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert known_peaks(device) is None
    save(calibration, default_path(device))
    assert known_peaks(device) == calibration.peaks
    other = calibration.machine.model_copy(update={"cpu": "Another CPU"})
    save(calibration.model_copy(update={"machine": other}), default_path(device))
    assert known_peaks(device) is None


def test_time_by_node_is_held_against_the_calibrated_peaks(calibration, device, linear, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save(calibration, default_path(device))
    words = ["profile", str(linear()[0].path), "--nodes", "--no-cold", "--seconds", "0.1", "--json"]
    (nodes,) = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)["nodes"]
    assert Peaks(**nodes["peaks"]) == calibration.peaks
    (nodes,) = json.loads(CliRunner().invoke(app, [*words, "--peaks", "1e9,2e9"]).stdout)["nodes"]
    assert Peaks(**nodes["peaks"]) == Peaks(flops_per_s=1e9, bytes_per_s=2e9)


def test_too_little_time_is_said(device):
    with pytest.raises(TargetError, match="fewer than 100\n  → give more time"):
        calibrate(device, Effort(minutes=1e-6), timer=lambda files, device: [[1.0] * 3] * len(files))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"runtime": "ncnn"}, "its runtime is ncnn"),
        ({"providers": ("CUDAExecutionProvider",)}, "it runs on CUDAExecutionProvider"),
        ({"address": "ssh://pi@there"}, "it is reached at ssh://pi@there"),
        ({"architecture": "riscv64"}, "its processor is riscv64"),
        ({"emulated": True}, "its processor is emulated"),
    ],
)
def test_what_is_not_this_machines_cpu_is_refused(device, fields, said):
    with pytest.raises(TargetError, match=f"cpu-ort cannot be calibrated here: {said}"):
        calibrate(device.model_copy(update=fields))


def test_the_command_lists_shows_and_refuses():
    runner = CliRunner()
    assert "cpu-ort" in runner.invoke(app, ["targets"]).stdout
    shown = runner.invoke(app, ["targets", "show", "cpu-ort"]).stdout
    assert "channel_alignment" in shown
    assert runner.invoke(app, ["targets", "cpu-ort"]).stdout == shown
    for words in (["show"], ["calibrate"], ["show", "a", "b"]):
        refused = runner.invoke(app, ["targets", *words])
        assert isinstance(refused.exception, TargetError)
        assert "takes one target" in str(refused.exception)


def test_the_command_writes_the_calibration_and_prints_its_errors(calibration, monkeypatch, tmp_path):
    import targets.predictor.calibrate as module

    checked = check(calibration.table, [Measured((kernel("product", 64, 1000),), 10_000)])
    monkeypatch.setattr(
        module, "calibrate", lambda *_, **__: calibration.model_copy(update={"checks": {"resnet": checked}})
    )
    done = CliRunner().invoke(app, ["targets", "calibrate", "cpu-ort", "--out", str(tmp_path / "c.json")])
    assert done.exit_code == 0
    assert "median 20.0%" in " ".join(done.stdout.split())
    assert Calibration.model_validate_json((tmp_path / "c.json").read_text()).checks["resnet"] == checked
