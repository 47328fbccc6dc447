"""A YAML text as plain values that remember their lines, so that an error can say where.

The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema): `1e6` is a number, `no`
and `on` are text, `012` is twelve, a date is text. PyYAML alone reads YAML 1.1. No tag makes Python run anything.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdc.core.errors import RecipeError

Key = str | int

_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own table


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own table

    def ignore_aliases(self, data: Any) -> bool:
        """A lock is read by people: a value that stands twice is written twice."""
        return True


for _class in (_Loader, _Dumper):
    for _name, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), [c.replace("\0", "") for c in _first]
        )
    _class.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 16 if text.lower().startswith("0x") else 10)  # PyYAML's own reads a leading 0 as octal


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


@dataclass(frozen=True)
class Document:
    """One YAML document: its plain values, and the line that every one of them stands on."""

    name: str
    value: dict[str, Any]
    root: yaml.MappingNode

    def where(self, path: Sequence[Key]) -> str:
        """`recipe.yaml:7`, the line of the value at this path; of the nearest one above it where there is none."""
        node: yaml.Node = self.root
        line: int = node.start_mark.line
        for key in path:
            found = _child(node, key)
            if found is None:
                break
            mark, node = found
            line = mark.start_mark.line
        return f"{self.name}:{line + 1}"


def read(path: Path) -> Document:
    """The recipe at `path`.

    Raises: RecipeError for a file that cannot be read, is not YAML, holds a key twice or is no mapping.
    """
    if path.is_dir():
        raise RecipeError(
            f"{path} is a folder; expected a recipe file", do=f"name the file, for one {path}/recipe.yaml"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"{path}: there is no such recipe", do="mend the path, or leave it out and use flags"
        ) from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: byte {error.start} is not UTF-8; expected a YAML text", do="save the recipe as UTF-8"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", do="mend its permissions or its path") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """The document in `text`; `name` stands for it in errors. Raises as `read` does."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError(
                f"{name}:1: the recipe is empty; expected at least the keys teacher and data",
                do="start from models/digits/recipe.yaml; `kdc schema` lists every key",
            )
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(
                f"{name}:{root.start_mark.line + 1}: found {_kind(root)}; "
                "expected a mapping with the keys teacher, data, ...",
                do="write it as `key: value` lines; `kdc schema` lists every key",
            )
        _refuse_loops(root, name, ())
        _refuse_duplicates(root, name)
        return Document(name, loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(
            f"{name}{at}: not a YAML text that kdc reads: {problem}", do=f"mend the text at {name}{at}"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # control characters; a bad `!!int`; 1000 brackets
        raise RecipeError(
            f"{name}: not a YAML text that kdc reads: {' '.join(str(error).split())}", do="remove what is named there"
        ) from None


def scalar(text: str) -> Any:
    """A value given on the command line, read as a recipe would read it: `0.5`, `true`, `[1, 2]`, `text`."""
    return yaml.load(text, _Loader)


def write(value: dict[str, Any]) -> str:
    """The YAML text that `parse` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _child(node: yaml.Node, key: Key) -> tuple[yaml.Node, yaml.Node] | None:
    """The node whose line is told, and the node to go on from."""
    if isinstance(node, yaml.MappingNode):
        return next(((name, value) for name, value in reversed(node.value) if name.value == str(key)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key]
    return None


def _members(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_loops(node: yaml.Node, name: str, above: tuple[yaml.Node, ...], seen: set[int] | None = None) -> None:
    seen = set() if seen is None else seen
    if any(node is parent for parent in above):
        raise RecipeError(
            f"{name}:{node.start_mark.line + 1}: this value holds itself by an alias; expected a finite one",
            do="write the value out in place of the `*alias`",
        )
    if id(node) not in seen:  # each node once: aliases of aliases would grow as powers of two
        seen.add(id(node))
        for member in _members(node):
            _refuse_loops(member, name, (*above, node), seen)


def _refuse_duplicates(root: yaml.Node, name: str) -> None:
    """YAML forbids a key that stands twice; PyYAML keeps the last one and says nothing."""
    found, waiting, seen = [], [root], {id(root)}
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            first: dict[Hashable, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                identity = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
                if identity in first and key.value != "<<":
                    found.append((line, f"the key {key.value!r} stands here and in line {first[identity]}"))
                first.setdefault(identity, line)
        for member in _members(node):
            if id(member) not in seen:
                seen.add(id(member))
                waiting.append(member)
    if found:
        raise RecipeError(
            "\n".join(f"{name}:{line}: {text}; expected each key once" for line, text in sorted(found)),
            do="remove one of the two",
        )


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"the text {str(node.value)[:40]!r}"
