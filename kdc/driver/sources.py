"""Which of kdc's own files a step's result depends on: those its pass imports, however far down."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from targets.runtime import version_of

OWN = ("kdc", "passes", "targets")
_FUNCTION = re.compile(r"[a-z_]\w*(\.\w+)+:\w+")


def digests(module: str, without: Iterable[str] = ()) -> dict[str, str]:
    """{file, relative to its top-level package: SHA-256} of a module and all of kdc's modules that it imports.

    Args: without: modules that are left out, with what they alone import.
    """
    seen: dict[str, str] = {}
    waiting = [module]
    known: set[str] = set(without)
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        path = _file(name)
        if path is None:
            continue
        text = path.read_bytes()
        seen |= _digest(name, path, text)
        waiting.extend(_imports(text))
    return dict(sorted(seen.items()))


def digest(module: str) -> dict[str, str]:
    """As `digests`, of this module's own file alone."""
    path = _file(module)
    assert path is not None
    return _digest(module, path, path.read_bytes())


def _digest(module: str, path: Path, text: bytes) -> dict[str, str]:
    label = module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
    return {label: hashlib.sha256(text).hexdigest()[:16]}


def versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions and runtimes; "absent" where one is not installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = version_of(name) or "absent"  # a runtime's distribution may have another name
    return found


@cache
def _file(module: str) -> Path | None:
    """Where the module's source lies, found without importing it; None for a name that is no module."""
    top, *rest = module.split(".")
    package = importlib.util.find_spec(top)
    if package is None or package.origin is None:
        return None
    place = Path(package.origin).parent.joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


@cache  # a run asks for each step, and to parse all files again takes longer than a small step
def _imports(text: bytes) -> tuple[str, ...]:
    """kdc's modules imported anywhere in this source, those inside functions too, and those named in "module:function"."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names.extend(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FUNCTION.fullmatch(node.value):
            names.append(node.value.partition(":")[0])
    return tuple(name for name in names if name.split(".")[0] in OWN)
