"""The mistakes in a recipe, in words: what pydantic found, as where, what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdc.core.errors import RecipeError
from kdc.driver.document import Key
from kdc.driver.overrides import FLAGS


@dataclass(frozen=True)
class Mistake:
    """One mistake at a place in the recipe's plain values. `expected` is empty where `found` says all."""

    path: tuple[Key, ...]
    found: str
    expected: str
    do: str


def raise_all(mistakes: Sequence[Mistake], where: Callable[[Sequence[Key]], str]) -> NoReturn:
    """Raise the one RecipeError that tells every mistake, one a line, in the order of the recipe's lines."""
    lines = [(where(m.path), f"{m.found}; expected {m.expected}" if m.expected else m.found, m.do) for m in mistakes]
    lines.sort(key=lambda line: int(number) if (number := line[0].rpartition(":")[2]).isdecimal() else 0)
    if len(lines) == 1:
        place, text, do = lines[0]
        raise RecipeError(f"{place}: {text}", do=do)
    raise RecipeError("\n".join(f"{place}: {text} → {do}" for place, text, do in lines))


def unknown(what: str, name: str, known: Iterable[str], path: tuple[Key, ...], help_: str) -> Mistake:
    """A name that is not among the known ones, with the one that was likely meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    do = f"did you mean {close[0]!r}? {help_}" if close else f"remove it; {help_}"
    return Mistake(path, f"unknown {what} {name!r}", f"one of {', '.join(names)}" if names else f"no {what} here", do)


def explain(error: ValidationError, model: type[BaseModel], at: tuple[Key, ...], plain: Any) -> list[Mistake]:
    """What pydantic found in `plain`, the values of `model` that stand at `at` in the recipe.

    The branches of a union each have their say in pydantic; here they are one mistake with several expectations.
    """
    found: dict[tuple[Key, ...], Mistake] = {}
    for one in error.errors(include_url=False):
        inner = _real(one["loc"], plain, last=one["type"] != "value_error")
        path = (*at, *inner)
        mistake = _explain(one, model, inner, path)
        before = found.get(mistake.path)
        if before is not None and before.expected != mistake.expected:
            mistake = Mistake(before.path, before.found, f"{before.expected}, or {mistake.expected}", before.do)
        found[mistake.path] = mistake
    return list(found.values())


def misread(raw: Any, read: Any, at: tuple[Key, ...]) -> list[Mistake]:
    """Values that pydantic takes for numbers and a person does not: `true` as 1, and limits that are not finite."""
    if isinstance(raw, dict) and isinstance(read, Mapping):
        return [mistake for key in raw for mistake in misread(raw[key], read.get(key), (*at, key))]
    if isinstance(raw, list) and isinstance(read, list | tuple) and len(raw) == len(read):
        pairs = enumerate(zip(raw, read, strict=True))
        return [mistake for index, (a, b) in pairs for mistake in misread(a, b, (*at, index))]
    number = isinstance(read, int | float) and not isinstance(read, bool)
    if number and (isinstance(raw, bool) or not math.isfinite(read)):
        return [Mistake(at, f"{dotted(at)} is {_shown(raw)}", "a finite number", f"write a number for {dotted(at)}")]
    return []


def dotted(path: Sequence[Key]) -> str:
    """The path as `--set` takes it: the name of a pass is left out behind its place in the list."""
    kept = [*path[:2], *path[3:]] if path[:1] == ("passes",) else path
    return ".".join(str(key) for key in kept)


def _explain(one: Any, model: type[BaseModel], inner: tuple[Key, ...], path: tuple[Key, ...]) -> Mistake:
    kind = one["type"]
    name = path[2] if path[0] == "passes" and len(path) > 2 else None
    help_ = f"`kdc passes {name}` shows its settings" if name else "`kdc schema` shows every key"
    if kind == "extra_forbidden":
        what = f"setting of the pass {name}" if name else "key"
        known = _fields(model, one["loc"][:-1]) or _fields(model, inner[:-1])
        return unknown(what, str(path[-1]), known, path, help_)
    if kind == "missing":
        flag = next((flag for key, flag in FLAGS.items() if (key + ".").startswith(dotted(path) + ".")), None)
        says = _description(model, inner)
        do = f"add `{path[-1]}:` to the recipe" + (f", or give {flag}" if flag else "")
        return Mistake(path, f"the key {dotted(path)!r} is missing", says or "it to be given", do)
    if kind == "invalid_key" or one["loc"][-1:] == ("[key]",):
        return Mistake(path, f"the key {path[-1]!r} is no text", "a name", f"quote it, as in '{path[-1]}': value")
    expected = re.sub(r"^(Input should be |Value error, |Assertion failed, )", "", one["msg"])
    if kind == "value_error" and isinstance(one["input"], dict):  # how settings go together: a sentence of its own
        told, _, do = expected.rpartition("; ")
        where, other = f"{dotted(path)}: {told or expected}", f"change them; {help_}"
        if do.startswith("expected "):
            return Mistake(path, where, do.removeprefix("expected "), other)
        return Mistake(path, where, "", do if told else other)
    expected = re.sub(r"^(greater|less)", r"a number \1", expected)
    if kind in ("model_type", "model_attributes_type"):
        expected = f"a mapping with the keys {', '.join(sorted(_fields(model, inner)))}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = f" as one of {one['ctx']['expected_tags']}" if "expected_tags" in one["ctx"] else ""
        expected = f"the key {one['ctx']['discriminator']} in it{tags}"
    says = _description(model, inner)
    do = f"set {dotted(path)} to such a value{f' ({says})' if says else ''}; {help_}"
    if kind == "union_tag_invalid":
        tag, known = one["ctx"]["tag"], re.findall(r"'(.*?)'", one["ctx"]["expected_tags"])
        if key := _key_beside(model, inner, tag):
            do = f"{tag} is one of `{key}`: name it there"
        elif close := difflib.get_close_matches(tag, known, 1):
            do = f"did you mean {close[0]!r}? {help_}"
    return Mistake(path, f"{dotted(path)} is {_shown(one['input'])}", expected, do)


def _real(loc: Sequence[Key], plain: Any, last: bool) -> tuple[Key, ...]:
    """The part of pydantic's location that is in the recipe: pydantic adds the names of a union's branches.

    `last`: the last key is kept where nothing follows it: it is the one that is missing.
    """
    real: list[Key] = []
    for number, key in enumerate(loc):
        inside = isinstance(plain, dict) and key in plain
        inside |= isinstance(plain, list) and isinstance(key, int) and key < len(plain)
        if inside:
            plain = plain[key]
            real.append(key)
        elif isinstance(plain, dict) and number == len(loc) - 1 and last:
            real.append(key)
    return tuple(real)


def _model_at(annotation: Any, keys: Sequence[Key]) -> type[BaseModel] | None:
    """The model among the types of an annotation, and then of its field, and so on along the keys."""
    waiting, models = [annotation], list[type[BaseModel]]()
    while waiting:
        part = waiting.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            models.append(part)
        waiting.extend(get_args(part))
    names = [key for key in keys if isinstance(key, str)]
    model = models[0] if models else None
    for one in models if len(models) > 1 and names else ():  # a union whose branch is told by a tag
        if any(field.default == names[0] for field in one.model_fields.values()):
            model, names = one, names[1:]
            break
    if model is None or not names:
        return model
    field = _by_key(model).get(names[0])
    return None if field is None else _model_at(field.annotation, names[1:])


def _key_beside(model: type[BaseModel], keys: Sequence[Key], tag: str) -> str | None:
    """The key beside the one that these keys lead to whose kinds have this tag; None where there is none."""
    *before, own = [key for key in keys if isinstance(key, str)] or [""]
    holder = _model_at(model, before)
    beside = {} if holder is None else {key: field for key, field in _by_key(holder).items() if key != own}
    return next((key for key, field in beside.items() if tag in _tags(field.annotation)), None)


def _tags(annotation: Any) -> set[Any]:
    """The kinds of the models among the types of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {field.default for name, field in annotation.model_fields.items() if name == "kind"}
    return set().union(*map(_tags, get_args(annotation)))


def _fields(model: type[BaseModel], keys: Sequence[Key]) -> Iterable[str]:
    found = _model_at(model, keys)
    return () if found is None else _by_key(found)


def _by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by their keys in a recipe, which may hold signs that no name in Python does."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _description(model: type[BaseModel], keys: Sequence[Key]) -> str | None:
    parent = _model_at(model, keys[:-1]) if keys else None
    field = _by_key(parent).get(str(keys[-1])) if parent is not None else None
    return None if field is None else field.description


def _shown(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else "empty" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
