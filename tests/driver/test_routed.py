"""A whole run that ends in early exits: what it ships, what it says, and the targets that cannot have `If`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from kdc.core.origins import origins_of
from kdc.driver.check import check
from kdc.driver.compress import compress
from kdc.driver.recipe import load_recipe
from kdc.driver.report import Drop, Estimate, Routing, Spread
from kdc.driver.routing import exit_limits
from passes import PASSES
from tests.conftest import train_teacher

pytestmark = pytest.mark.slow

TEACHER = """
from torch import nn


def build(width=48, depth=7):
    layers = []
    for place in range(depth):
        layers += [nn.Conv2d(width if place else 1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
"""
DATA = '''
import numpy as np


def load(n=600, seed=0):
    """Noise with a bright bar: top, bottom, left or right; half of the bars are faint."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.standard_normal((n, 1, 16, 16)).astype(np.float32)
    for image, label, bright in zip(images[:, 0], labels, rng.choice([1.0, 4.0], n)):
        bar = image[[0, -1][label], :] if label < 2 else image[:, [0, -1][label - 2]]
        bar += bright
    cut = [int(n * share) for share in (0.6, 0.7, 0.85)]
    parts = zip(("train", "calibration", "validation", "test"), np.split(images, cut), np.split(labels, cut))
    return {name: (x, y) for name, x, y in parts}
'''
RECIPE = """
teacher:
  build: teacher.py:build
  weights: teacher.safetensors
data: data.py:load
target: TARGET
budget:
  max_drop: 100
passes:
  - route:
      exits: ['3']
      head: conv
      max_drop: 10
      training: {epochs: 6, batch: 32, learning_rate: 2.0e-3}
"""
PROFILE = """
name = "own"
summary = "a target of the user's own"
runtime = "onnxruntime"
threads = 1
opset = 21
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routed")
    (folder / "teacher.py").write_text(TEACHER)
    (folder / "data.py").write_text(DATA)
    train_teacher(TEACHER + DATA, folder / "teacher.safetensors", epochs=8, learning_rate=2e-3)
    return folder


def run(project: Path, name: str, target: str = "cpu-ort"):
    path = project / f"{name}.yaml"
    path.write_text(RECIPE.replace("TARGET", target))
    out = project / name
    events: list = []
    return out, compress(load_recipe(path, {}, [], PASSES), out, events.append), events


@pytest.fixture(scope="module")
def finished(project):
    return run(project, "plain")


def test_exits_ship_as_one_file_and_as_stages(finished):
    out, report, _ = finished
    assert report.ships == "student.onnx"
    assert {path.name for path in (out / "cascade").iterdir()} == {
        "cascade.json", "stage-1.onnx", "stage-2.onnx", "run_cascade.py"
    }  # fmt: skip
    told = [origins_of(onnx_ir.load(out / name)) for name in ("student.onnx", "cascade/stage-1.onnx")]
    assert told[0] == told[1]
    assert {one for name, one in told[0].items() if name.startswith("stage_1.exit")} == {"route"}
    manifest = json.loads((out / "manifest.json").read_text())["sha256"]
    assert {"student.onnx", "cascade/cascade.json", "cascade/run_cascade.py"} <= manifest.keys()


def test_both_forms_send_every_input_to_the_same_exit_without_kdc(finished, project, tmp_path):
    out, report, _ = finished
    names: dict = {}
    exec(DATA, names)
    images, labels = names["load"]()["test"]
    np.savez(tmp_path / "inputs.npz", **{"0": images})
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in (out / "cascade").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-I", str(folder / "run_cascade.py"), str(tmp_path / "inputs.npz"), "--out"]
    subprocess.run([*command, str(tmp_path / "outputs.npz")], check=True, capture_output=True)
    with np.load(tmp_path / "outputs.npz") as found:
        staged = {name: found[name] for name in found.files}
    session = onnxruntime.InferenceSession(out / "student.onnx")
    one_file = [session.run(None, {session.get_inputs()[0].name: image[None]}) for image in images]
    taken = np.concatenate([exits for _, exits in one_file])
    assert np.array_equal(taken, staged["exit"])
    logits = np.concatenate([answer for answer, _ in one_file])
    np.testing.assert_allclose(logits, staged[next(n for n in staged if n != "exit")], rtol=1e-4, atol=1e-4)
    assert report.student.metric.points == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert [row.share for row in report.routing.exits] == pytest.approx([np.mean(taken == 0), np.mean(taken == 1)])


def test_the_report_has_the_mix_and_the_latencies_beside_the_model_without_exits(finished):
    _, report, _ = finished
    (step,) = report.steps
    for found in (step.routing, report.routing):
        assert [row.after for row in found.exits] == ["3", "the last layer"] or len(found.exits) == 2
        assert sum(row.share for row in found.exits) == pytest.approx(1)
        assert found.exits[0].share > 0
        assert found.cascade.mean_ms < found.plain.mean_ms
        assert found.exits[0].mean_ms < found.plain.mean_ms
        assert found.speedup.low > 1
        assert found.cascade.worst_ms >= max(row.mean_ms for row in found.exits if row.mean_ms is not None)
    assert step.routing.split == "validation"
    assert report.routing.split == "test"
    assert step.findings["exits"]["candidates"][0]["temperature"] > 0
    assert report.student.latency.mean_ms is not None
    assert report.teacher.latency.mean_ms is None


def test_verify_holds_all_forms_to_the_same_decisions(finished):
    lines = check(finished[0]).lines
    assert [line.split(":")[0] for line in lines] == ["checksums", "structure", "parity", "decisions", "metric"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('unsupported_operators = ["If"]', "target own has no operator If: the staged form"),
        ("batch = 4", "If decides for a whole batch, and this target runs batches of 4: the staged form"),
    ],
)
def test_a_target_that_cannot_use_if_gets_the_staged_form_and_the_reason(project, line, reason):
    profile = project / f"own{len(line)}.toml"
    profile.write_text(PROFILE + line + "\n")
    out, report, events = run(project, profile.stem, str(profile))
    assert any(reason in getattr(event, "text", "") for event in events)
    (step,) = report.steps
    assert step.routing is not None
    if report.ships != "student.onnx":
        assert report.ships == "cascade/cascade.json"
        assert not (out / "student.onnx").exists()
        check(out)


def test_exits_that_do_not_help_do_not_ship(tmp_path):
    # so small a model that `If` costs more than what stands behind it, the last layers
    teacher = TEACHER.replace("width=48, depth=7", "width=4, depth=2")
    (tmp_path / "teacher.py").write_text(teacher)
    (tmp_path / "data.py").write_text(DATA)
    train_teacher(teacher + DATA, tmp_path / "teacher.safetensors", epochs=20, learning_rate=1e-2)
    path = tmp_path / "useless.yaml"
    path.write_text(RECIPE.replace("TARGET", "cpu-ort").replace("max_drop: 10\n", "max_drop: 100\n"))
    events: list = []
    report = compress(load_recipe(path, {}, [], PASSES), tmp_path / "useless", events.append)
    assert report.routing is None
    assert not (tmp_path / "useless" / "cascade").exists()
    texts = [getattr(event, "text", "") for event in events]
    assert any("no early exit lowers" in text or "early exits do not help" in text for text in texts), texts


def measured(speedup: tuple[float, float], drop: tuple[float, float]) -> Routing:
    """What early exits came to: their speed-up and drop as (value, lower end)."""
    spread = Spread(mean_ms=1.0, median_ms=1.0, p95_ms=1.0, worst_ms=1.0)
    return Routing(
        split="validation",
        exits=(),
        cascade=spread,
        plain=spread,
        speedup=Estimate(ratio=speedup[0], low=speedup[1], high=2 * speedup[0]),
        last_exit=None,
        drop=Drop(points=drop[0], low=drop[1], high=drop[0] + 1, p_value=None),
        disagreeing=0,
    )


SETTINGS = {"max_drop": 0.0, "mean_latency_ms": None, "min_gain": 1.1, "max_last_exit_cost": 1.1}


@pytest.mark.parametrize(
    ("speedup", "drop", "last", "settings", "missed"),
    [
        ((1.5, 1.4), (0.3, -0.1), (1.05, 1.09), {}, set()),
        ((1.5, 1.4), (0.3, -0.1), None, {}, set()),
        ((1.02, 0.99), (-1.0, -2.0), None, {}, {"early_exit_gain"}),
        ((1.15, 1.09), (-1.0, -2.0), None, {}, {"early_exit_gain"}),
        ((1.15, 1.09), (-1.0, -2.0), None, {"min_gain": 1.05}, set()),
        ((1.5, 1.4), (0.3, -0.1), (1.08, 1.12), {}, {"last_exit_cost"}),
        ((1.5, 1.4), (0.3, -0.1), (1.08, 1.12), {"max_last_exit_cost": 1.2}, set()),
        ((1.5, 1.4), (0.8, 0.6), None, {"max_drop": 0.5}, {"early_exit_drop"}),
        ((1.5, 1.4), (9.0, 8.0), None, {"max_drop": None}, set()),
        ((1.5, 1.4), (9.0, 8.0), None, {"mean_latency_ms": 1.0}, set()),
    ],
)
def test_exits_ship_where_they_gain_enough_and_cost_little(speedup, drop, last, settings, missed):
    found = measured(speedup, drop)
    if last is not None:
        found = found.model_copy(update={"last_exit": Estimate(ratio=last[0], low=2 * last[0] - last[1], high=last[1])})
    assert {one.name for one in exit_limits(found, SETTINGS | settings) if not one.met} == missed
