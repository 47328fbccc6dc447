"""Delta-KD as a recipe names it: paths of its bases, their part of the store's key, and no method that stands alone."""

import pytest

from kdc.core.errors import RecipeError
from kdc.distill.settings import Training
from kdc.driver.inputs import load
from kdc.driver.keys import step_parts
from kdc.driver.methods import methods
from kdc.driver.recipe import load_recipe, lock_text
from passes import PASSES


def recipe(folder, bases: str):
    passes = f"passes=[{{distill: {{training: {{objectives: [{{kind: delta_kd, {bases}}}]}}}}}}]"
    return load_recipe(folder / "recipe.yaml", {}, [passes], PASSES)


def test_paths_of_bases_are_those_of_the_recipes_folder_and_the_lock_loads_again(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes)
    (shapes / "old.onnx").write_bytes(b"")
    made = recipe(
        shapes,
        "teacher_base: {onnx: old.onnx}, student_base: {build: teacher.py:build, weights: teacher.safetensors}",
    )
    (objective,) = made.passes[0].training.objectives
    assert objective.teacher_base.onnx == shapes.resolve() / "old.onnx"
    assert objective.student_base.weights == shapes.resolve() / "teacher.safetensors"
    assert objective.student_base.build == f"{shapes.resolve() / 'teacher.py'}:build"
    (tmp_path / "lock.yaml").write_text(lock_text(made))
    assert load_recipe(tmp_path / "lock.yaml", {}, [], PASSES) == made


@pytest.mark.parametrize(
    ("bases", "told"),
    [
        ("teacher_base: {onnx: none.onnx}", "there is no file"),
        ("strength: 1", "teacher_base"),
        ("teacher_base: {build: teacher.py:build}, student_base: end", "student_base"),
    ],
)
def test_a_base_that_cannot_be_is_told_when_the_recipe_is_read(shapes, monkeypatch, bases, told):
    monkeypatch.chdir(shapes)
    with pytest.raises(RecipeError, match=told):
        recipe(shapes, bases)


@pytest.mark.parametrize("base", ["teacher_base", "student_base"])
def test_other_weights_of_a_base_are_another_step(shapes, monkeypatch, base):
    monkeypatch.chdir(shapes)
    whole = (shapes / "teacher.safetensors").read_bytes()
    copies = {name: shapes / f"{name}.safetensors" for name in ("teacher_base", "student_base")}
    for copy in copies.values():
        copy.write_bytes(whole)
    named = ", ".join(f"{name}: {{build: teacher.py:build, weights: {copy.name}}}" for name, copy in copies.items())
    made = recipe(shapes, named)
    inputs = load(made)
    before = step_parts(made.passes[0], "0", inputs)
    copies[base].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    after = step_parts(made.passes[0], "0", inputs)
    assert {key for key in before if before[key] != after[key]} == {"teachers"}


def test_it_is_no_method_that_applies_by_itself():
    (one,) = (method for method in methods(Training(), kinds=["delta_kd"]) if method.name == "delta_kd")
    assert one.training is None
    assert "teacher_base" in one.refused
