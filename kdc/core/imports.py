"""Which files beside a Python file it imports: read from the sources, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PROTECTED = frozenset({"kdc", "passes", "targets"}) | sys.stdlib_module_names
"""Names that a user's file never stands for."""


def files_of(file: Path) -> list[tuple[str, Path]]:
    """The file and, however far down, the files in its folder or its package that it imports.

    Returns: (the file's place relative to its folder or its package's folder, path), sorted. Imports inside functions
    count too. A file that is no valid Python counts alone.
    """
    file = file.resolve()
    root = file.parent
    while (root / "__init__.py").is_file():  # a module of a package: its names start at the package's own folder
        root = root.parent
    packaged = root != file.parent
    own = file.relative_to(root).parts[0].removesuffix(".py") if packaged else None
    seen: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = path.relative_to(root).as_posix()
        for name in _imports(path, root):
            top = name.split(".")[0]
            if top not in PROTECTED and own in (None, top):
                waiting.extend(_files(root, name))
    return sorted((label, path) for path, label in seen.items())


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Dotted names, from `root` on; `from a import b` gives a and a.b, for b may be a module."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(root).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module:
                yield module
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)


def _files(root: Path, name: str) -> Iterator[Path]:
    """The files that importing this name from `root` runs: its packages' `__init__.py` and its own."""
    place = root
    for part in name.split("."):
        place = place / part
        for candidate in (place / "__init__.py", place.with_name(f"{part}.py")):
            if candidate.is_file():
                yield candidate
