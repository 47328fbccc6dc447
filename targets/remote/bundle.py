"""The agent as one file: `agent.pyz`, a zip of this package's own sources that `python3 agent.pyz` runs.

It holds the measuring loop that runs here too, and what that imports; no second loop is written for devices.
"""

from __future__ import annotations

import ast
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("kdc", "targets")
AGENT = "targets.remote.agent"
LEAST_PYTHON = (3, 10)

# Written for Pythons that are too old for the rest, so that they get an answer instead of a syntax error.
_MAIN = """\
import json, os, shutil, sys
def remove():
    shutil.rmtree(os.path.dirname(os.path.abspath(sys.argv[0])), ignore_errors=True)
def refuse(kind, found):
    remove()
    print("KDC-AGENT " + json.dumps({"refused": kind, "found": found, "python": sys.executable}))
    sys.stdout.flush()
    sys.exit(0)
if sys.version_info < %r:
    refuse("python", sys.version.split()[0])
try:
    import numpy
except ImportError as error:
    refuse("numpy", str(error))
if sys.argv[1] == "work":
    from targets.worker import main
    main(*sys.argv[2:])
else:
    try:
        from targets.remote.agent import serve
    except BaseException:
        remove()
        raise
    serve()
"""


@cache
def bundle(runtime_module: str) -> bytes:
    """The bytes of agent.pyz: the agent, the worker, one runtime's module, and all of ours that they import.

    The same sources give the same bytes.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in [
            ("__main__.py", _MAIN % (LEAST_PYTHON,)),
            *_sources((AGENT, "targets.worker", runtime_module)),
        ]:
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _sources(modules: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The place in the zip and the text of each module, and of every package above one; sorted."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        place = _place(name)
        if place is None or place in found:
            continue
        found[place] = (ROOT / place).read_text(encoding="utf-8")
        waiting += [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        waiting += _imports(ast.parse(found[place]))
    return iter(sorted(found.items()))


def _place(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((place for place in (f"{path}/__init__.py", f"{path}.py") if (ROOT / place).is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    """What of ours a source imports; what stands under `if TYPE_CHECKING` is for readers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in OURS)
        yield from _imports(node)
