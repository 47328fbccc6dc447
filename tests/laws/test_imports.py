"""Imports go one way, in layers, those inside functions too; and there are no circles."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {
    "kdc.core.errors": 0,
    "kdc.numerics": 0,
    "kdc.core": 1,
    "kdc.tasks": 2,
    "kdc.distill": 2,
    "targets": 2,
    "passes": 3,
    "kdc.driver": 4,
    "kdc.api": 5,
    "kdc.cli": 5,
    "kdc": 6,
}
FILES = sorted(path for top in ("kdc", "passes", "targets") for path in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    name = module
    while name not in LAYERS:
        name = name.rpartition(".")[0]
    return LAYERS[name]


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        found |= {name for name in names if name in MODULES}
    return found - {module_of(path)}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_no_layer_above_its_own(path):
    above = {name for name in imports(path) if layer(name) > layer(module_of(path))}
    assert above == set()


def test_no_imports_run_in_a_circle():
    # A pass's class and its machinery, which its verbs import, know each other's types: they count as one.
    graph = {
        name: {
            other for other in imports(path) if not (name.startswith("passes.") and other == name.rpartition(".")[0])
        }
        for path in FILES
        if (name := module_of(path))
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


LAZY = ("kdc/cli", "passes", "targets", "kdc/distill/team.py")  # the last: Accelerate may be absent


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_verbs_and_runtimes_import_inside_functions(path):
    if str(path.relative_to(ROOT)).startswith(LAZY):
        return
    tree = ast.parse(path.read_text())
    inside = [
        ast.unparse(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    allowed = {"import torch"} if module_of(path) == "kdc.core.contract" else set()
    assert set(inside) <= allowed


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_is_pickled(path):
    text = path.read_text()
    assert not re.search(r"pickle\.(load|dump)|Unpickler|Pickler|import (dill|joblib|cloudpickle)", text)
    for line in text.splitlines():
        assert "torch.load(" not in line or "weights_only=True" in line
