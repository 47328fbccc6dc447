"""What the command line says over the recipe: `--set key.path=value`, and sizes and times with their units."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kdc.core.errors import RecipeError
from kdc.driver import document

FLAGS = {
    "teacher.build": "--teacher",
    "teacher.weights": "--weights",
    "data": "--data",
    "data.load": "--data",
    "target": "--target",
    "budget.latency_ms": "--max-latency",
    "budget.latency_ms@cold": "--max-latency",
    "budget.min_speedup": "--min-speedup",
    "budget.max_drop": "--max-drop",
    "budget.size_mb": "--max-size",
    "budget.macs": "--max-macs",
    "budget.peak_memory_mb": "--max-memory",
    "budget.compile_minutes": "--max-minutes",
    "seed": "--seed",
}
"""Keys of a recipe that have a flag of their own, so that an error can name what the user typed."""

_TIMES_MS = {"s": 1000.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ns": 1e-6}
_SIZES_MB = {"b": 1e-6, "kb": 1e-3, "mb": 1.0, "gb": 1e3, "kib": 1024 / 1e6, "mib": 1024**2 / 1e6, "gib": 1024**3 / 1e6}
_QUANTITY = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([^\W\d_]*)\s*")


@dataclass(frozen=True)
class Override:
    """One value to put over the recipe's own, and what to call it in an error."""

    path: tuple[str | int, ...]
    value: Any
    where: str


def overrides_of(flags: Mapping[str, Any], settings: Sequence[str]) -> list[Override]:
    """Flags (dotted key -> value), then the texts of `--set`, which are stronger.

    Raises: RecipeError for a text that is no `key.path=value`.
    """
    return [
        *(Override(_path(key), value, FLAGS.get(key, f"--set {key}")) for key, value in flags.items()),
        *(Override(_path(key), value, f"--set {key}") for key, value in parse_settings(settings).items()),
    ]


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """The texts of `--set` as keys and values; a value is read as YAML, and the last of equal keys holds.

    Raises: RecipeError for a text that is no `key.path=value`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise RecipeError(
                f"--set {text!r}: expected key.path=value", do="write it like `--set passes.0.keep_macs=0.5`"
            )
        try:
            found[key.strip()] = document.scalar(value)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise RecipeError(
                f"--set {text!r}: the value {value!r} is no YAML: {problem}; "
                "expected a number, a text, true, [a, list], ...",
                do=f"quote a text that holds signs of YAML: --set {key}='\"...\"'",
            ) from None
    return found


def put(recipe: dict[str, Any], override: Override) -> None:
    """Write the override into the recipe's plain values, in place. Mappings on the way are made; list items are not.

    Raises: RecipeError where the path leads through a list item that is not there, or through a value that holds none.
    """
    node: Any = recipe
    done: list[str] = []
    for key, following in zip(override.path[:-1], override.path[1:], strict=True):
        _expect(node, key, done, override)
        if isinstance(node, dict) and node.get(key) is None and not isinstance(following, int):
            node[key] = {}
        node = node[int(key)] if isinstance(node, list) else node.get(key)
        done.append(str(key))
    _expect(node, override.path[-1], done, override)
    node[override.path[-1]] = override.value


def _expect(node: Any, key: str | int, done: list[str], override: Override) -> None:
    """Raises RecipeError unless `node` has a place for `key`."""
    above = ".".join(done) or "the recipe"
    if isinstance(node, list):
        if isinstance(key, int) and key < len(node):
            return
        have = f"has items 0 to {len(node) - 1}" if node else "has no items"
        raise RecipeError(
            f"{override.where}: there is no {'.'.join([*done, str(key)])}: {above} {have}",
            do="give the number of an item that is there, or add the item to the recipe",
        )
    if not isinstance(node, dict):
        have = "is not in the recipe" if node is None else f"is {node!r}, which holds no keys"
        raise RecipeError(
            f"{override.where}: there is no {'.'.join([*done, str(key)])}: {above} {have}",
            do=f"write {above} into the recipe first, or give it whole: --set {above}=VALUE",
        )


def parse_latency(text: str | float) -> float:
    """`0.4ms`, `400us`, `0.0004s`, or a plain number of milliseconds -> milliseconds.

    Raises: RecipeError, with examples.
    """
    return _quantity(text, _TIMES_MS, "a time", "0.4ms, 400us or 0.0004s", "ms")


def parse_latencies(texts: Sequence[str]) -> dict[str, float]:
    """`0.3ms` or `0.3ms@hot`, and `0.4ms@cold`, as the budget's keys and milliseconds; the last of equal ones holds.

    Raises: RecipeError, with examples.
    """
    found: dict[str, float] = {}
    for text in texts:
        time, at, regime = text.partition("@")
        key = "latency_ms@cold" if regime.strip() == "cold" else "latency_ms"
        if at and regime.strip() not in ("hot", "cold"):
            raise RecipeError(
                f"found {text!r}: expected a time of hot or of cold runs, like 0.4ms, 0.4ms@hot or 0.4ms@cold",
                do=f"write {time}@cold for runs that find the caches swept, or {time} for runs back to back",
            )
        found[key] = parse_latency(time)
    return found


def parse_size(text: str | float) -> float:
    """`300kB`, `8MB`, `1.2MiB`, or a plain number of megabytes -> MB, 1 MB = 10^6 bytes.

    Raises: RecipeError, with examples.
    """
    return _quantity(text, _SIZES_MB, "a size", "300kB, 8MB or 1.2MiB", "MB")


def _quantity(text: str | float, units: Mapping[str, float], what: str, examples: str, default: str) -> float:
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise RecipeError(
            f"found {str(text)!r}; expected {what} above 0 like {examples}",
            do=f"write a number and its unit (a plain number is in {default})",
        )
    number, unit = match.groups()
    scale = units.get((unit or default).lower())
    if scale is None:
        close = difflib.get_close_matches(unit.lower(), units, 1)
        raise RecipeError(
            f"found {str(text)!r}: {unit!r} is no unit of {what}; expected one like {examples}",
            do=f"write {number}{close[0] if close else default}, or a plain number in {default}",
        )
    return float(number) * scale


def _path(key: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdecimal() else part.strip() for part in key.split("."))
