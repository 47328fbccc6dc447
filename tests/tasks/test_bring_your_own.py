"""The example of docs/bring-your-own.md, pasted and run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from kdc.core.errors import DataError, ModelError
from kdc.core.usercode import call, load_callable
from kdc.core.weights import load_weights
from kdc.driver.inputs import load
from kdc.driver.recipe import load_recipe
from kdc.tasks.classification import task_of
from kdc.tasks.data import input_specs, load_splits
from passes import PASSES
from passes.search.members import Members

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files in a folder, trained."""
    tmp_path = tmp_path_factory.mktemp("page")
    (tmp_path / "my").mkdir()
    for name, code in re.findall(r"```python\n# (my/\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).write_text(code)
    recipe = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert recipe is not None
    (tmp_path / "my" / "recipe.yaml").write_text(recipe[1])
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # on busy cores torch's threads would wait for one another
    subprocess.run([sys.executable, "my/train.py"], cwd=tmp_path, check=True, timeout=120, env=one_thread)
    return tmp_path


def test_the_pages_example_gives_a_trained_teacher_and_four_splits_as_pasted(example: Path):
    recipe = load_recipe(example / "my" / "recipe.yaml", {}, [], {})
    loader = load_callable(recipe.data.load, example, "data", DataError)
    splits = load_splits(call(loader, recipe.data.arguments, "data", DataError), recipe.seed, "my/data.py:load")
    assert [len(s) for s in (splits.train, splits.calibration, splits.validation, splits.test)] == [1275, 75, 150, 300]
    builder = load_callable(recipe.teacher.build, example, "teacher", ModelError)
    model = call(builder, recipe.teacher.arguments, "teacher", ModelError).eval()
    assert recipe.teacher.weights is not None
    load_weights(model, recipe.teacher.weights)
    assert [spec.name for spec in input_specs(splits.train, ["image"])] == ["image"]
    with torch.no_grad():
        outputs = model(splits.test.inputs[0])
    task = task_of(recipe.task)
    task.check(splits.test, "test", tuple(outputs.shape))
    accuracy = task.metrics(outputs.numpy(), splits.test.labels.numpy(), None)["accuracy"]
    assert accuracy > 90 > task.chance(splits)


def test_the_pages_flags_and_its_recipe_mean_the_same(example: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(example)
    command = re.search(r"kdc compress (--teacher .*)", PAGE.read_text())
    assert command is not None
    words = command[1].split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    by_flags = load_recipe(
        None,
        {
            "teacher.build": flags["--teacher"],
            "teacher.weights": flags["--weights"],
            "data.load": flags["--data"],
            "budget.max_drop": float(flags["--max-drop"]),
        },
        ["teacher.arguments.width=16"],
        {},
    )
    assert by_flags == load_recipe(example / "my" / "recipe.yaml", {}, [], {})


def test_the_pages_own_space_is_searched_as_pasted(example: Path):
    yaml = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (example / "my" / "search.yaml").write_text(yaml[0] + yaml[1])
    recipe = load_recipe(example / "my" / "search.yaml", {}, [], PASSES)
    assert recipe.passes is not None
    search = recipe.passes[0]
    inputs = load(recipe)
    members = Members(inputs.teacher, search.spaces, 0)
    members.check()
    built = [members.build(members.draw(Random(seed))) for seed in range(4)]
    assert len({members.size(model) for model in built}) > 1
    assert search.code() == (f"{example / 'my' / 'net.py'}:build",)


@pytest.mark.slow
def test_the_pages_command_compresses_the_example_as_pasted(example: Path):
    command = re.search(r"kdc (compress --teacher .*)", PAGE.read_text())
    assert command is not None
    words = [sys.executable, "-m", "kdc.cli.main", *command[1].split()]
    done = subprocess.run(words, cwd=example, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 3), done.stderr  # 3: on some machines so small a model cannot be made faster
    assert (example / "runs" / "mine" / "student.onnx").is_file()
    assert "speed-up" in done.stdout
