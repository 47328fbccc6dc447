"""Teachers that a recipe names for a training: their paths, their part of the store's key, mistakes."""

from pathlib import Path

import pytest

from kdc.core.errors import RecipeError
from kdc.core.store import Store
from kdc.driver.inputs import load
from kdc.driver.keys import step_parts
from kdc.driver.recipe import load_recipe, lock_text
from kdc.driver.students import Structure
from kdc.driver.trial import Trial
from kdc.driver.trials import Table
from passes import PASSES

COMBINED = ", strategies: [{kind: combined-teachers}]"


def recipe(folder: Path, teachers: str, more: str = ""):
    return load_recipe(
        folder / "recipe.yaml", {}, [f"passes=[{{distill: {{training: {{teachers: {teachers}{more}}}}}}}]"], PASSES
    )


def test_paths_of_teachers_are_those_of_the_recipes_folder_and_the_lock_loads_again(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes)
    (shapes / "old.onnx").write_bytes(b"")
    made = recipe(shapes, "[own, {onnx: old.onnx}, {build: teacher.py:build, weights: teacher.safetensors}]", COMBINED)
    own, onnx, built = made.passes[0].training.teachers
    assert own == "own"
    assert onnx.onnx == shapes.resolve() / "old.onnx"
    assert built.build == f"{shapes.resolve() / 'teacher.py'}:build"
    (tmp_path / "lock.yaml").write_text(lock_text(made))
    assert load_recipe(tmp_path / "lock.yaml", {}, [], PASSES) == made


@pytest.mark.parametrize(
    ("teachers", "told"),
    [
        ("[{onnx: none.onnx}]", "there is no file"),
        ("[{onnx: teacher.py}]", "is no ONNX file"),
        ("[{ask: nothing, queries: 3}]", "path/to/file.py:callable"),
        ("[{queries: 3}]", "one of `build`, `onnx`, `torchscript` or `ask`"),
        ("[]", "at least 1"),
        ("[own, {build: teacher.py:build}]", "add a strategy"),
    ],
)
def test_a_teacher_that_cannot_be_is_told_when_the_recipe_is_read(shapes, monkeypatch, teachers, told):
    monkeypatch.chdir(shapes)
    with pytest.raises(RecipeError, match=told):
        recipe(shapes, teachers)


def test_other_weights_of_a_teacher_are_another_step(shapes, monkeypatch):
    monkeypatch.chdir(shapes)
    copy = shapes / "copy.safetensors"
    copy.write_bytes((shapes / "teacher.safetensors").read_bytes())
    made = recipe(shapes, "[{build: teacher.py:build, weights: copy.safetensors}]")
    inputs = load(made)
    before = step_parts(made.passes[0], "0", inputs)
    copy.write_bytes(copy.read_bytes()[:-1] + bytes([copy.read_bytes()[-1] ^ 1]))
    after = step_parts(made.passes[0], "0", inputs)
    assert before["teachers"] != after["teachers"]
    assert {key for key in before if before[key] != after[key]} == {"teachers"}


def test_teachers_that_changed_places_are_another_step_and_another_trial(shapes, monkeypatch, tmp_path):
    monkeypatch.chdir(shapes)
    weights = (shapes / "teacher.safetensors").read_bytes()
    one, other = shapes / "one.safetensors", shapes / "other.safetensors"
    one.write_bytes(weights)
    other.write_bytes(weights)
    named = ", ".join(f"{{build: teacher.py:build, weights: {path.name}}}" for path in (one, other))
    made = recipe(shapes, f"[{named}]", COMBINED)
    inputs = load(made)
    table = Table(inputs, Store(tmp_path / "store"), None)
    trial = Trial(name="", training=made.passes[0].training, seed=0, start="fresh", structure=Structure(build="a.py:b"))
    seen = []
    for first, second in [(one, other), (other, one)]:
        first.write_bytes(weights)
        second.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        seen.append((step_parts(made.passes[0], "0", inputs), table.parts(trial)))
    for before, after in zip(*seen, strict=True):
        assert {key for key in before if before[key] != after[key]} == {"teachers"}
