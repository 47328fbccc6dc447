"""The wheel ships kdc, passes and targets, and nothing else."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]


def test_the_wheel_has_exactly_the_three_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(str(ROOT), include=settings["include"])
    assert {name.split(".")[0] for name in found} == {"kdc", "passes", "targets"}


def test_every_folder_of_code_is_a_package_that_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    found = set(find_packages(str(ROOT), include=settings["include"]))
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("kdc", "passes", "targets")
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders <= found
