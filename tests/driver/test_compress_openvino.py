"""A whole run for a runtime with a format of its own, of two files: what ships, and that it is what was checked."""

import importlib.util
import shutil

import numpy as np
import pytest

from kdc.core.spec import DeviceFile
from kdc.driver.check import check
from kdc.driver.compress import compress
from kdc.driver.recipe import load_recipe
from passes import PASSES
from targets.device import load_device
from targets.runtime import runtime_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed"),
]


def test_a_run_ships_both_files_and_goes_on_from_its_store(shapes, tmp_path):
    recipe = load_recipe(shapes / "recipe.yaml", {"target": "cpu-openvino"}, [], PASSES)
    report = compress(recipe, tmp_path / "run")
    assert report.ships == "student.xml"
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"student.xml", "student.bin", "student.onnx"}
    assert "openvino" in report.environment["libraries"]
    assert any("parity" in line for line in check(tmp_path / "run").lines)

    device = load_device("cpu-openvino")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("student.xml", "student.bin"):
        shutil.copyfile(tmp_path / "run" / name, moved / name)
    engine = runtime_of(device).load(DeviceFile(moved / "student.xml", "openvino"), device)
    names: dict = {}
    exec((shapes / "data.py").read_text(), names)
    images, labels = names["load"]()["test"]
    (logits,) = engine.run([images])
    assert report.student.metric.points == pytest.approx(100 * np.mean(logits.argmax(1) == labels))

    events: list = []
    again = compress(recipe, tmp_path / "run", events.append)
    assert again.student.sha256 == report.student.sha256
    assert all(event.stored for event in events if hasattr(event, "stored"))
