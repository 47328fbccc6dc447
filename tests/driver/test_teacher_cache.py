"""`--cache-gb` and `--teacher-cache`: where a run keeps the teacher's answers, and whose they are."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kdc.core.errors import FolderError
from kdc.core.observe import silent
from kdc.core.store import Store
from kdc.driver.inputs import Inputs, load
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Kept, Steps
from passes import PASSES


@pytest.fixture
def inputs(shapes: Path) -> Inputs:
    return load(load_recipe(shapes / "recipe.yaml", {}, [], PASSES))


def context_of(inputs: Inputs, folder: Path, kept: Kept | None = None):
    return Steps(inputs, Store(folder / "store"), silent, kept).context("prune", "0" * 64, lambda _: [], lambda: None)


def test_without_flags_answers_are_kept_in_the_runs_own_store(inputs, tmp_path):
    context = context_of(inputs, tmp_path)
    assert context.cache.parent == context.cache_root == tmp_path / "store" / "cache"
    assert context.cache_bytes is None


def test_a_limit_in_gigabytes_and_a_shared_folder(inputs, tmp_path):
    shared = tmp_path / "shared"
    runs = [context_of(inputs, tmp_path / name, Kept(shared, 0.5)) for name in ("a", "b")]
    assert {context.cache_root for context in runs} == {shared}
    assert len({context.cache for context in runs}) == 1
    assert {context.cache_bytes for context in runs} == {500_000_000}


def test_a_shared_folder_of_another_teacher_is_refused(inputs, shapes, tmp_path):
    context_of(inputs, tmp_path, Kept(tmp_path / "shared"))
    recipe = load_recipe(shapes / "recipe.yaml", {}, ["teacher.weights=null"], PASSES)
    with pytest.raises(FolderError, match="holds the answers of another teacher: found"):
        context_of(load(recipe), tmp_path, Kept(tmp_path / "shared"))


@pytest.mark.slow
def test_the_command_refuses_a_cache_of_other_data(
    kdc: Callable[..., subprocess.CompletedProcess[str]], shapes: Path, inputs: Inputs, tmp_path: Path
):
    context_of(inputs, tmp_path, Kept(tmp_path / "shared"))
    text = (shapes / "data.py").read_text()
    (shapes / "data.py").write_text(text.replace("seed=0", "seed=1"))
    done = kdc("compress", shapes / "recipe.yaml", "--out", tmp_path / "run", "--teacher-cache", tmp_path / "shared")
    assert done.returncode == 2, done.stderr
    assert "holds the answers of other data or another augmentation" in " ".join(done.stderr.split())
    assert "→" in done.stderr
    assert "Traceback" not in done.stderr
