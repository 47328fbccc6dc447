"""`kdc profile` and `kdc targets` as they are typed."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import typer
from typer.testing import CliRunner

from kdc.cli.profile import profile
from kdc.cli.targets import targets
from kdc.core.errors import DataError, TargetError

app = typer.Typer()
app.command()(profile)
app.command()(targets)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_profile_is_a_table_of_80_columns_with_a_verdict_in_words(linear):
    small, large = linear("small.onnx", 8, 8)[0], linear("a-rather-long-name-of-a-large-model.onnx", 1500, 1500)[0]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, ["profile", str(large.path), "--seconds", "0.5"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "2,250,000" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    result = run("profile", small.path, "--against", small.path, "--seconds", "0.5")
    assert "small.onnx" in result.stdout
    assert "difference between" in result.stdout or "er than" in result.stdout


def test_hot_and_cold_have_lines_of_their_own(linear):
    file = linear()[0].path
    both = run("profile", file, "--against", file, "--seconds", "0.1").stdout
    assert "cold median, ms" in both
    assert "\ncold: " in both
    assert "p99.9, ms" in both
    assert "cold" not in run("profile", file, "--seconds", "0.1", "--no-cold").stdout


def test_the_self_test_is_a_table_of_80_columns_with_a_line_for_each_regime(linear):
    file = linear("a-rather-long-name-of-a-large-model.onnx")[0].path
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, ["profile", str(file), "--self-test", "--seconds", "0.1"], catch_exceptions=False
    )
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.split()[0] in ("hot", "cold")] == ["hot", "cold"]
    assert all("%" in line for line in lines if line.split()[0] in ("hot", "cold"))
    found = json.loads(run("profile", file, "--self-test", "--seconds", "0.1", "--no-cold", "--json").stdout)
    assert [noise["regime"] for noise in found["self_test"]] == ["hot"]
    with pytest.raises(TargetError, match="--self-test is of one file"):
        run("profile", file, "--self-test", "--against", file)


def test_json_is_all_that_stdout_holds(linear, tmp_path):
    file, _ = linear()
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8)))
    result = run(
        "profile", file.path, "--against", file.path, "--seconds", "0.5", "--json", "--samples", tmp_path / "x.npz"
    )
    found = json.loads(result.stdout)
    assert found["candidate"]["parameters"] == 32
    assert found["ratio"]["verdict"] in ("faster", "slower", "no detectable difference")
    assert len(found["samples_ns"]) == 2


def test_hash_and_size_are_of_the_file_given_where_a_copy_ran(linear):
    """A free size besides the batch makes --shape write a copy."""
    weights, path = linear("free.onnx", external=True)[1], linear("free.onnx", external=True)[0].path
    model = onnx.load(path, load_external_data=False)
    for face in (*model.graph.input, *model.graph.output):
        face.type.tensor_type.shape.dim.insert(1, onnx.TensorShapeProto.Dimension(dim_param="steps"))
    path.write_bytes(model.SerializeToString())
    found = json.loads(run("profile", path, "--shape", "x=1,5,8", "--seconds", "0.1", "--no-cold", "--json").stdout)
    beside = path.with_name("free.onnx.data").read_bytes()
    assert found["candidate"]["sha256"] == hashlib.sha256(path.read_bytes() + beside).hexdigest()
    assert found["candidate"]["size_mb"] == pytest.approx((path.stat().st_size + len(beside)) / 1e6)
    assert found["candidate"]["macs"] == 5 * weights.size


def test_samples_that_cannot_be_read_are_named(linear, tmp_path):
    file, _ = linear()
    (tmp_path / "x.npy").write_text("no array")
    with pytest.raises(DataError, match=r"x\.npy: holds no arrays"):
        run("profile", file.path, "--samples", tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"gone\.npy: there is no such file"):
        run("profile", file.path, "--samples", tmp_path / "gone.npy")


def test_targets_are_listed_with_one_line_each():
    lines = run("targets").stdout.splitlines()
    assert any(line.startswith("cpu-ort") and "ONNX Runtime" in line for line in lines)


def test_an_unknown_target_is_an_error_that_names_the_known_ones():
    with pytest.raises(TargetError, match="cpu-ort"):
        run("targets", "show", "gpu")


def test_the_verbs_are_cheap_to_import():
    code = """if True:
        import sys, kdc.cli.profile, kdc.cli.targets
        sys.exit(bool({"torch", "numpy", "onnx", "pydantic"} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
