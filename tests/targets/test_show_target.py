"""`kdc targets show`: every field with its unit, what this machine has of it, and links that can be followed."""

import importlib.util
import platform

import pytest
import typer
from typer.testing import CliRunner

from kdc.cli.show_target import _numbered
from kdc.cli.targets import targets
from kdc.core.device import Device, QuantizationScheme
from kdc.core.errors import TargetError
from targets.device import names

app = typer.Typer()
app.command()(targets)
MINIMAL = 'name = "mine"\nsummary = "s"\nruntime = "onnxruntime"\nthreads = 2\nopset = 21\n'


def run(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, list(map(str, arguments)), catch_exceptions=False).stdout


def value(shown, name):
    """What stands beside a name, the lines that go on with it joined."""
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}  "))
    found = [lines[start].removeprefix(f"  {name}")]
    for line in lines[start + 1 :]:
        if not line.startswith("      "):
            break
        found.append(line)
    return " ".join(" ".join(found).split())


@pytest.fixture
def mine(tmp_path):
    def write(more=""):
        (tmp_path / "mine.toml").write_text(MINIMAL + more)
        return tmp_path / "mine.toml"

    return write


@pytest.mark.parametrize("target", names())
def test_every_profile_shows_every_field_in_80_columns_but_for_links(target):
    shown = run("show", target)
    words = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    fields = (Device.model_fields.keys() | QuantizationScheme.model_fields.keys()) - {
        "name", "summary", "quantization", "source", "memory_source", "alignment_source",
    }  # fmt: skip
    scheme = QuantizationScheme.model_fields.keys() if "the pass `quantize` is refused" in shown else set()
    assert fields - scheme <= words
    wide = [line for line in shown.splitlines() if len(line) > 80]
    assert all(line.split()[1].startswith("https://") and len(line.split()) == 2 for line in wide)


def test_the_name_alone_shows_it_too_and_a_second_name_is_refused():
    assert run("cpu-ort") == run("show", "cpu-ort")
    with pytest.raises(TargetError, match=r"takes one target, got 2\n.*kdc targets show NAME"):
        run("show", "cpu-ort", "cpu-mnn")
    with pytest.raises(TargetError, match="takes one target, got 0"):
        run("show")


def test_what_the_profile_does_not_say_is_unknown(mine):
    shown = run("show", mine())
    for name in ("memory_mb", "storage_mb"):
        assert value(shown, name) == "unknown"
    assert value(shown, "scheme").startswith("none known")
    assert value(shown, "channel_alignment") == "1 (any number of channels)"
    assert value(shown, "profile") == "none given"
    assert value(run("show", "cortex-m"), "architecture") == "unknown"


def test_numbers_have_their_units(mine):
    shown = run("show", mine('batch = 4\nmemory_mb = 512.5\nmemory_source = "m"\nstorage_mb = 16\n'))
    assert value(shown, "memory_mb") == "512.5 MB (10^6 bytes)"
    assert value(shown, "storage_mb") == "16 MB (10^6 bytes)"
    assert value(shown, "batch") == "4 samples"
    assert value(shown, "opset") == "21 (of ONNX)"


def test_it_says_what_is_installed_where_it_runs_and_what_providers_there_are(mine):
    import onnxruntime

    shown = run("show", mine())
    assert value(shown, "runtime") == f"onnxruntime {onnxruntime.__version__} is installed"
    assert value(shown, "runs here") == "yes"
    assert value(shown, "providers there are") == ", ".join(onnxruntime.get_available_providers())


def test_the_bits_of_weights_and_the_features_that_integers_need_are_shown_beside_those_that_are_here():
    from targets.proc import cpu_features

    shown = run("show", "cpu-ort-vnni")
    assert value(shown, "weight_bits") == "8 (-127 to 127)"
    assert value(shown, "requires_any_feature") == "avx512_vnni or avx_vnni or amx_int8"
    assert value(shown, "features here") == (", ".join(cpu_features() or ()) or "unknown")
    shown = run("show", "cpu-ort")
    assert value(shown, "weight_bits") == "7 (-63 to 63)"
    assert value(shown, "requires_any_feature") == "none: right on every processor of the target"


def test_an_absent_runtime_is_shown_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    shown = run("show", "cpu-openvino")
    assert value(shown, "runtime") == "the runtime openvino is not installed: pip install 'kdc[openvino]'"
    assert value(shown, "runs here").startswith("no")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ('architecture = "pdp11"\n', f"no: it is pdp11, and this machine is {platform.machine()}"),
        ('providers = ["NoExecutionProvider"]\n', "no: this build of onnxruntime has no NoExecutionProvider; it has "),
        ('address = "ssh://pi@host"\n', "no: it runs at ssh://pi@host, and what is installed there was not asked"),
    ],
)
def test_the_reason_is_told_where_its_files_cannot_run(mine, more, reason):
    assert value(run("show", mine(more)), "runs here").startswith(reason)


def test_links_are_numbered_once_each_and_stand_whole(mine):
    link = "https://example.org/" + "a" * 90
    source = f"One: {link} . Two, {link}, and https://example.org/b."
    shown = run("show", mine(f'source = "{source}"\n'))
    assert value(shown, "profile") == "One: [1]. Two, [1], and [2]."
    assert f"  [1] {link}" in shown.splitlines()
    assert "  [2] https://example.org/b" in shown.splitlines()


def test_a_text_without_links_is_left_as_it_is():
    links: list = []
    assert _numbered("a [1] b . c", links) == "a [1] b . c"
    assert links == []
