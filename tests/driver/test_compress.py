"""A whole run on a user's own small project: the results, the store, and going on after a kill."""

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from kdc.core.errors import ModelError, RecipeError
from kdc.core.origins import origins_of
from kdc.core.spec import DeviceFile
from kdc.driver.check import check
from kdc.driver.compress import compress
from kdc.driver.recipe import load_recipe
from kdc.driver.why import why
from passes import PASSES
from targets.device import load_device
from targets.quick import quick_latencies

pytestmark = pytest.mark.slow


def recipe(folder: Path, *settings: str):
    return load_recipe(folder / "recipe.yaml", {}, settings, PASSES)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shapes_weights):
    from tests.conftest import DATA, RECIPE, TEACHER

    folder = tmp_path_factory.mktemp("project")
    for name, text in (("teacher.py", TEACHER), ("data.py", DATA), ("recipe.yaml", RECIPE)):
        (folder / name).write_text(text)
    (folder / "teacher.safetensors").write_bytes(shapes_weights.read_bytes())
    return folder, folder / "run", compress(recipe(folder), folder / "run")


def test_the_folder_holds_what_was_promised_and_nothing_else(finished):
    _, out, _ = finished
    assert {path.name for path in out.iterdir()} == {
        "student.onnx", "teacher.onnx", "report.json", "structure.json", "weights.safetensors", "recipe.lock.yaml",
        "manifest.json", ".kdc",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())["sha256"]
    assert all(sha(out / name) == digest for name, digest in manifest.items())


def test_the_report_says_what_the_student_file_does(finished):
    folder, out, report = finished
    names: dict = {}
    exec((folder / "data.py").read_text(), names)
    images, labels = names["load"]()["test"]
    session = onnxruntime.InferenceSession(out / "student.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    assert report.student.metric.points == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert report.student.sha256 == sha(out / "student.onnx")
    assert report.drop.points == pytest.approx(report.teacher.metric.points - report.student.metric.points)


def test_the_report_has_its_keys_and_one_row_a_pass(finished):
    _, out, _ = finished
    report = json.loads((out / "report.json").read_text())
    assert {"schema_version", "teacher", "student", "steps", "budget", "speedup", "drop", "environment", "seconds"} <= (
        report.keys()
    )
    assert [step["kind"] for step in report["steps"]] == ["prune", "quantize"]
    assert sum(step["selected"] for step in report["steps"]) == 1
    assert {"ratio", "low", "high", "verdict"} == report["speedup"].keys()


def test_the_students_file_tells_which_pass_last_changed_each_layer(finished):
    """Three convolutions and the linear layer: pruning to a fifth changes each, and so does quantizing."""
    _, out, report = finished
    (shipped,) = (step.kind for step in report.steps if step.selected)
    (pruned,) = (out / ".kdc").glob("**/prune+simplify*/model.onnx")
    for path, kind in ((out / "student.onnx", shipped), (pruned, "prune")):
        found = origins_of(onnx_ir.load(path))
        assert {name: found[name] for name in ("0", "3", "6", "11")} == dict.fromkeys(("0", "3", "6", "11"), kind)
    assert origins_of(onnx_ir.load(out / "teacher.onnx")) == {}


def test_verify_passes_on_the_run_as_it_is(finished):
    lines = check(finished[1]).lines
    assert [line.split(":")[0] for line in lines] == ["checksums", "structure", "parity", "metric"]


def test_the_lock_gives_the_same_recipe_again(finished):
    folder, out, _ = finished
    again = load_recipe(out / "recipe.lock.yaml", {}, [], PASSES)
    assert again == recipe(folder)


def test_a_second_run_serves_every_step_from_the_store(finished):
    folder, out, report = finished
    events: list = []
    again = compress(recipe(folder), out, events.append)
    started = [event for event in events if type(event).__name__ == "StepStarted"]
    assert started
    assert all(event.stored for event in started)
    assert again.student.sha256 == report.student.sha256


def test_churn_is_held_against_the_previous_release(finished, tmp_path):
    folder, out, report = finished
    release = tmp_path / "release.onnx"
    release.write_bytes((out / "student.onnx").read_bytes())
    same = compress(recipe(folder, f"previous={release}", "budget.max_churn=1"), out)
    assert same.student.metrics["churn"] == same.student.metrics["new_mistakes"] == 0
    assert report.student.metrics["churn"] == pytest.approx(100 - report.student.metrics["agreement"])
    (verdict,) = (v for v in same.budget if v.name == "max_churn")
    assert verdict.met
    assert same.previous == str(release)


def test_a_release_of_other_inputs_is_refused(finished, tmp_path):
    folder, out, _ = finished
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])], "other",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 5])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="the previous release takes"):
        compress(recipe(folder, f"previous={tmp_path / 'other.onnx'}"), out)


def test_a_churn_limit_without_a_previous_release_is_a_mistake_in_the_recipe(finished):
    with pytest.raises(RecipeError, match="none is named"):
        recipe(finished[0], "budget.max_churn=1")


def reasons(folder: Path, out: Path, *settings: str) -> dict[str, tuple[bool, tuple[str, ...]]]:
    return {reason.step: (reason.stored, reason.changes) for reason in why(recipe(folder, *settings), out, None)}


def test_nothing_changed_and_everything_is_stored(finished):
    found = reasons(*finished[:2])
    assert list(found) == [
        *("teacher+export", "teacher+simplify", "teacher+build"),
        *("prune", "prune+export", "prune+simplify", "prune+build"),
        *("quantize", "quantize+export", "quantize+simplify", "quantize+build"),
    ]
    assert all(stored for stored, _ in found.values())


def test_a_changed_setting_repeats_its_step_and_those_after_it(finished):
    found = reasons(*finished[:2], "passes.1.samples=100")
    assert found["prune"] == (True, ())
    assert found["quantize"][0] is False
    assert found["quantize"][1] == ("settings.samples: 512 → 100",)
    found = reasons(*finished[:2], "passes.0.keep_macs=0.3")
    assert found["prune"] == (False, ("settings.keep_macs: 0.2 → 0.3",))
    assert "the step before it, prune, is done again" in found["quantize"][1]


def test_a_changed_seed_repeats_everything(finished):
    found = reasons(*finished[:2], "seed=7")
    assert found["prune"][1] == ("seed: 0 → 7",)
    assert not found["quantize"][0]


def test_a_changed_line_of_a_pass_repeats_that_pass_and_names_the_file(finished, monkeypatch):
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self) + (b"\n# new" if self.name == "calibrate.py" else b"")
    )
    found = reasons(*finished[:2])
    assert found["prune"] == (True, ())
    (change,) = found["quantize"][1]
    assert change.startswith("source.passes/quantize/calibrate.py")


def test_a_changed_byte_of_the_data_repeats_everything_and_says_data(finished):
    folder, out, _ = finished
    text = (folder / "data.py").read_text()
    (folder / "data.py").write_text(text.replace("bar += 3", "bar += 3.001"))
    try:
        found = reasons(folder, out)
    finally:
        (folder / "data.py").write_text(text)
    assert not any(stored for stored, _ in found.values())
    assert any(change.startswith("data: ") for change in found["prune"][1])


def test_another_version_of_a_library_repeats_what_uses_it(finished, monkeypatch):
    from kdc.driver import sources

    real = sources.version
    monkeypatch.setattr(sources, "version", lambda name: "99.0" if name == "brevitas" else real(name))
    found = reasons(*finished[:2])
    assert found["prune"] == (True, ())
    assert found["quantize"][1][0].startswith("libraries.brevitas: ")
    assert found["prune+export"] == (True, ())
    assert found["quantize+export"] == (False, ("the step before it, quantize, is done again",))


def test_a_killed_run_goes_on_and_ends_with_the_same_student(finished, tmp_path):
    folder, _, report = finished
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "kdc.cli.main", "compress", str(folder / "recipe.yaml"), "--out", str(out)]
    for seconds in (7.0, 12.0):
        process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = subprocess.run([*command, "--quiet", "--json"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    steps = [json.loads((out / "structure.json").read_text()), json.loads((folder / "run/structure.json").read_text())]
    assert steps[0]["steps"] == steps[1]["steps"]
    assert sha(out / "weights.safetensors") == sha(folder / "run" / "weights.safetensors")
    assert sha(out / "student.onnx") == report.student.sha256


def test_a_limit_on_cold_runs_is_held_by_cold_runs_and_says_so(finished, tmp_path):
    """A limit far above what any student takes: that it is met is no claim about this machine."""
    folder, out, _ = finished
    shutil.copytree(out, tmp_path / "run")
    report = compress(recipe(folder, "budget.latency_ms@cold=1000"), tmp_path / "run")
    assert report.met
    (cold,) = (verdict for verdict in report.budget if verdict.name == "latency_ms@cold")
    assert cold.met
    assert cold.value == report.student.cold.high_ms <= cold.limit == 1000
    assert cold.value != report.student.latency.high_ms
    assert "latency_ms" not in {verdict.name for verdict in report.budget}


def test_a_limit_on_cold_runs_that_no_student_meets_ends_with_3_and_names_it(finished, tmp_path):
    """Above what the runtime takes for a graph that does nothing, so that it is tried; below what a student takes."""
    folder, out, report = finished
    shutil.copytree(out, tmp_path / "run")
    floor_ms = quick_latencies([nothing(tmp_path)], load_device("cpu-ort"), seconds=0.5)[0]
    limit_ms = math.sqrt(floor_ms * report.student.cold.low_ms)
    command = [sys.executable, "-m", "kdc.cli.main", "compress", str(folder / "recipe.yaml"), "--quiet"]
    for wanted_ms in (limit_ms, 1e-6):
        asked = [*command, "--max-latency", f"{wanted_ms:.7f}ms@cold", "--out", str(tmp_path / "run")]
        ended = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert ended.returncode == 3, ended.stderr
        assert "latency_ms@cold" in ended.stderr
        assert "latency_ms:" not in ended.stdout


def nothing(folder):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", 1, [1, 64])], [value("y", 1, [1, 64])]
    )
    path = folder / "nothing.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    return DeviceFile(path, "onnxruntime")


def test_a_limit_that_cannot_be_met_keeps_the_nearest_and_names_it(finished):
    folder, out, _ = finished
    report = compress(recipe(folder, "budget.size_mb=0.001"), out)
    assert not report.met
    assert "size_mb" in report.binding()
    assert (out / "student.onnx").exists()
    compress(recipe(folder), out)
