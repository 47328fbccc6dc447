"""The command line answers at once, and prints what it says it prints."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest

from kdc.cli.show import observer
from kdc.cli.stopping import listening
from kdc.core.observe import Note

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "pydantic", "numpy", "sklearn", "brevitas")


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_help_loads_nothing_heavy():
    assert not loaded_by("import kdc.cli.main") & set(HEAVY)


def test_importing_kdc_loads_nothing_heavy():
    assert not loaded_by("import kdc") & set(HEAVY)


def test_reading_a_recipe_loads_no_torch():
    assert not loaded_by("import kdc.driver.recipe, passes, targets.device") & {"torch", "onnx_ir", "onnxruntime"}


@pytest.mark.parametrize(
    "verb", ["compress", "plan", "profile", "build", "verify", "passes", "targets", "why", "schema"]
)
def test_every_verb_has_a_help(kdc, verb):
    done = kdc(verb, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_passes_are_listed_with_one_line_each(kdc):
    from passes import PASSES

    lines = kdc("passes").stdout.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")][: len(PASSES)] == list(PASSES)


def test_a_passes_settings_are_shown_with_defaults_and_sources(kdc):
    out = kdc("passes", "prune").stdout
    assert "keep_macs" in out
    assert "training.epochs" in out
    assert "arXiv:1906.10771" in out


def test_what_a_setting_can_be_is_named_with_the_pass_and_shown_when_asked_for(kdc):
    from kdc.driver.methods import objective_kinds

    words = kdc("passes", "distill").stdout.replace(",", " ").split()
    assert {*objective_kinds(), "mixup", "ps-kd", "dot"} <= {*words}
    shown = " ".join(kdc("passes", "distill", "objectives").stdout.split())
    assert {*objective_kinds(), "labels"} <= {*shown.split()}
    assert "arXiv:2203.08679" in shown
    assert " given" in kdc("passes", "distill", "delta_kd").stdout  # a setting that must be has no default to show
    assert "Undefined" not in shown
    one = kdc("passes", "distill", "dkd").stdout
    assert "weight of the others among themselves" in one
    assert one.startswith("Target class and other classes")


def test_a_part_that_a_pass_has_not_is_told_with_those_that_it_has(kdc):
    done = kdc("passes", "distill", "objective")
    assert done.returncode == 2
    assert "objectives, strategies" in done.stderr


def test_the_schema_of_a_recipe_has_all_objectives(kdc):
    schema = json.loads(kdc("schema").stdout)
    kinds = schema["$defs"]["Training"]["properties"]["objectives"]["items"]["discriminator"]["mapping"]
    assert {"labels", "hints", "kd", "dkd", "taid", "uld"} <= kinds.keys()
    assert schema["$defs"]["Decoupled"]["properties"]["beta"]["default"] == 8.0


def test_an_unknown_pass_names_the_known_ones(kdc):
    done = kdc("passes", "squash")
    assert done.returncode == 2
    assert "quantize" in done.stderr


@pytest.mark.slow
def test_a_run_from_flags_alone_prints_the_table_and_can_be_verified(kdc, shapes, tmp_path):
    done = kdc(
        "compress", "--teacher", f"{shapes}/teacher.py:build", "--weights", shapes / "teacher.safetensors",
        "--data", f"{shapes}/data.py:load", "--target", "cpu-ort", "--max-latency", "5ms", "--max-drop", "100",
        "--max-size", "300kB", "--out", tmp_path / "mine", "--log", tmp_path / "log.jsonl",
        "--set", "passes=[{prune: {keep_macs: 0.2, training: {epochs: 2}}}, quantize]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "speed-up" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "[1/2] prune" in done.stderr
    assert '"event": "Epoch"' in (tmp_path / "log.jsonl").read_text()
    verified = kdc("verify", tmp_path / "mine")
    assert verified.returncode == 0, verified.stderr
    assert "checksums: every file is as it was written" in verified.stdout
    (tmp_path / "mine" / "student.onnx").write_bytes(b"other")
    damaged = kdc("verify", tmp_path / "mine")
    assert damaged.returncode == 2
    assert "student.onnx is not the file that was written" in damaged.stderr


def test_a_ctrl_c_that_a_library_lost_is_raised_by_the_next_event():
    before = signal.getsignal(signal.SIGINT)
    with listening(), observer(quiet=True, log=None) as emit:
        with contextlib.suppress(KeyboardInterrupt):  # as Python does inside a destructor
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            emit(Note("the run goes on"))
    assert signal.getsignal(signal.SIGINT) is before
