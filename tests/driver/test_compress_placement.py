"""A whole run on a target whose preferred provider takes nothing: the report says that all of it ran on the CPU."""

import onnxruntime
import pytest

from kdc.cli.table import show
from kdc.driver.compress import compress
from kdc.driver.recipe import load_recipe
from kdc.driver.report import Report
from passes import PASSES
from targets.device import PROFILES

IDLE, CPU = "AzureExecutionProvider", "CPUExecutionProvider"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(IDLE not in onnxruntime.get_available_providers(), reason=f"onnxruntime has no {IDLE} here"),
]


def test_a_report_tells_where_teacher_and_student_ran(shapes, tmp_path, capsys):
    profile = tmp_path / "idle.toml"
    profile.write_text(f'providers = ["{IDLE}"]\n' + (PROFILES / "cpu-ort.toml").read_text())
    recipe = load_recipe(shapes / "recipe.yaml", {"target": str(profile)}, ["passes=[quantize]"], PASSES)
    report = compress(recipe, tmp_path / "run")
    for row in (report.teacher, report.student):
        assert row.placement.asked == (IDLE,)
        assert row.placement.nodes.keys() == {CPU}
    assert report.teacher.placement.nodes[CPU]["Conv"] == 3
    assert Report.model_validate_json((tmp_path / "run" / "report.json").read_text()) == report
    show(report, tmp_path / "run")
    said = " ".join(capsys.readouterr().out.split())
    assert "teacher nodes: none of" in said
    assert "student nodes: none of" in said
    assert "fell back: " in said
