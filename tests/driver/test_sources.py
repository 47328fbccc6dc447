"""A step's key covers the code that it runs, and no other."""

from kdc.driver.keys import measuring_parts
from kdc.driver.sources import digests
from targets.device import load_device


def test_a_pass_depends_on_its_own_files_and_on_what_they_import():
    found = digests("passes.prune")
    assert {"passes/prune/__init__.py", "passes/prune/importance.py", "kdc/distill/loop.py"} <= found.keys()


def test_a_pass_depends_on_functions_that_settings_name_in_words():
    found = digests("passes.distill")
    assert {"kdc/distill/objectives/decoupled.py", "kdc/distill/objectives/distributions.py"} <= found.keys()


def test_a_pass_does_not_depend_on_another_pass_or_on_the_driver():
    found = digests("passes.prune")
    assert not [
        name for name in found if name.startswith(("passes/quantize", "passes/export", "kdc/driver", "kdc/cli"))
    ]


def test_a_changed_line_changes_the_digest_of_that_file_alone(monkeypatch, tmp_path):
    from pathlib import Path

    before = digests("passes.prune")
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self) + (b"\n# changed" if self.name == "importance.py" else b"")
    )
    after = digests("passes.prune")
    assert {name for name in before if before[name] != after[name]} == {"passes/prune/importance.py"}


def test_a_measurement_depends_on_the_process_that_is_started_for_it():
    """It is named to a new interpreter and imported by nobody."""
    found = measuring_parts(load_device("cpu-ort"))["source"]
    assert {"targets/measure.py", "targets/worker.py", "targets/onnxruntime.py"} <= found.keys()
