"""The recipe: what to compress, with what data, for which target and budget, by which passes.

A recipe runs no code and needs no torch, so that a mistake in it is answered at once. All mistakes are told together,
each with the line that it stands on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, InstanceOf, SerializeAsAny, ValidationError
from pydantic.json_schema import models_json_schema

from kdc.core.budget import Budget
from kdc.core.contract import Pass
from kdc.core.spec import TensorSpec
from kdc.distill.synthesis.settings import Synthesis
from kdc.driver import document
from kdc.driver.document import Key
from kdc.driver.mistakes import Mistake, explain, misread, raise_all, unknown
from kdc.driver.overrides import Override, overrides_of, parse_latencies, parse_latency, parse_size, put

__all__ = ["Recipe", "load_recipe", "lock_text", "parse_latencies", "parse_latency", "parse_size", "schema"]

AnyPass = Pass[Any]
KnownPasses = Mapping[str, type[AnyPass]]

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth")
_FILES = {
    "weights": ("weights", WEIGHT_SUFFIXES, "convert it"),
    "onnx": ("ONNX", (".onnx",), "export the model with torch.onnx.export"),
    "torchscript": ("TorchScript", (".pt", ".pth", ".ts", ".torchscript"), "save it with torch.jit.save"),
    "previous": ("ONNX", (".onnx",), "name the student.onnx of the last release"),
}
"""Keys that name a file of data: what it is, how its name may end, and what to do."""
_CODE = ("build", "ask")
_SOURCES = {"teachers", "teacher_base", "student_base"}  # settings of a pass that name teachers
_CALLABLE = "path/to/file.py:callable or package.module:callable"
_PATHS: tuple[tuple[str, str], ...] = (("teacher", "build"), ("teacher", "weights"), ("data", "load"))
SYNTHESISE: tuple[Key, ...] = ("data", "synthesise")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class TeacherSpec(BaseModel, frozen=True, extra="forbid"):
    """The trained model."""

    build: str = Field(description=f"{_CALLABLE}, which returns a torch.nn.Module")
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the callable")
    weights: Path | None = Field(default=None, description="a .safetensors file, or .pt/.pth with plain tensors")
    inputs: tuple[TensorSpec, ...] | None = Field(
        default=None, description="in call order; default: seen from the data"
    )


class DataSpec(BaseModel, frozen=True, extra="forbid"):
    """The data: what `load` returns; where there is no training split, `synthesise` makes one from the teacher."""

    load: str | None = Field(default=None, description=f"{_CALLABLE}, which returns the splits")
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the callable")
    synthesise: Synthesis | None = Field(
        default=None,
        description="a training split made by `method: inversion` or `method: generator` where `load` gives none",
    )


class MeasureSpec(BaseModel, frozen=True, extra="forbid"):
    """How long the files are timed at the end: longer gives narrower intervals."""

    seconds: float = Field(default=20, gt=0, description="of all files together")
    cold_seconds: float | None = Field(
        default=None,
        ge=0,
        description="the same for cold runs; default: 20 where the budget limits them, else 5; 0: they are not timed",
    )


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A recipe with every path absolute. `passes` None stands for the target's default list."""

    teacher: TeacherSpec = Field(description="the trained model, by `build` and `weights`")
    data: DataSpec = Field(description="the data, by `load`")
    task: Literal["classification"] = Field(default="classification", description="what the model is for")
    target: str = Field(
        default="cpu-ort", min_length=1, description="a name that `kdc targets` lists, or a profile.toml"
    )
    budget: Budget = Budget()
    passes: tuple[SerializeAsAny[InstanceOf[AnyPass]], ...] | None = Field(default=None, description="in their order")
    previous: Path | None = Field(
        default=None,
        description="the .onnx file of the release that this one replaces: how many answers change (churn)",
    )
    measure: MeasureSpec = MeasureSpec()
    seed: int = Field(default=0, ge=0, lt=2**63, description="of every random number in the run")


def load_recipe(
    path: Path | None, flags: Mapping[str, Any], settings: Sequence[str], known_passes: KnownPasses
) -> Recipe:
    """The recipe in a file, or without one, with flags and settings put over it, in this order.

    Args: path: the YAML file; None: flags and settings say everything.
        flags: dotted key -> value, as in `{"budget.latency_ms": 0.4}`.
        settings: the texts of `--set`, as in `["passes.0.keep_macs=0.5"]`.
        known_passes: name -> the class of its settings.
    Returns: the recipe with every path absolute: the file's are relative to its folder, others to the current folder.
    Raises: RecipeError that lists every mistake with its file and line (or its flag).
    """
    text = None if path is None else document.read(path)
    plain: dict[str, Any] = {} if text is None else dict(text.value)
    _expand(plain)
    given: list[Override] = []
    for override in overrides_of(flags, settings):
        given.append(_into_settings(override, plain))
        put(plain, given[-1])
        _expand(plain)

    def where(at: Sequence[Key]) -> str:
        for override in reversed(given):
            if override.path[: len(at)] == tuple(at) or tuple(at[: len(override.path)]) == override.path:
                return override.where
        return "the command line" if text is None else text.where(at)

    def folder(at: Sequence[Key]) -> Path:
        from_flag = any(override.path == tuple(at[: len(override.path)]) for override in given)
        return Path.cwd() if path is None or from_flag else path.parent

    mistakes = _resolve_paths(plain, folder)
    passes, wrong = _passes(plain.pop("passes", None), known_passes)
    mistakes += wrong
    recipe = None
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        mistakes += explain(error, Recipe, (), plain)
    else:
        mistakes += misread(plain.get("budget", {}), recipe.budget.model_dump(by_alias=True), ("budget",))
        mistakes += misread(plain.get("seed"), recipe.seed, ("seed",))
        mistakes += misread(plain.get("measure", {}), recipe.measure.model_dump(), ("measure",))
        mistakes += _cold_limit_without_cold_runs(recipe)
        mistakes += misread(plain["data"].get("synthesise"), recipe.data.model_dump()["synthesise"], SYNTHESISE)
        mistakes += _without_data(recipe)
        mistakes += _churn_without_release(recipe)
    if recipe is None or mistakes:
        raise_all(mistakes, where)
    return recipe.model_copy(update={"passes": passes})


def lock_text(recipe: Recipe) -> str:
    """The recipe with nothing left to defaults, as the YAML text that loads again to an equal recipe."""
    plain = _settled(recipe, "passes").model_dump(exclude={"passes"}, by_alias=True)
    plain["previous"] = None if recipe.previous is None else str(recipe.previous)
    plain["teacher"]["weights"] = None if recipe.teacher.weights is None else str(recipe.teacher.weights)
    if recipe.passes is not None:
        plain["passes"] = [{settings.kind: _settled(settings).model_dump(mode="json")} for settings in recipe.passes]
    return document.write(plain)


def schema(known_passes: KnownPasses) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe, with the settings of every known pass."""
    models: list[type[BaseModel]] = [Recipe, *known_passes.values()]
    refs, whole = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    definitions = {name: part for name, part in whole["$defs"].items() if name not in ("Recipe", "Pass_Any_")}
    top = whole["$defs"]["Recipe"]
    whole_data = {"$ref": "#/$defs/DataSpec"}
    top["properties"]["data"] = {"anyOf": [{"type": "string", "description": _CALLABLE}, whole_data]}
    entries = [
        {
            "type": "object",
            "properties": {name: {"anyOf": [refs[model, "validation"], {"type": "null"}]}},
            "required": [name],
            "additionalProperties": False,
        }
        for name, model in known_passes.items()
    ]
    items = {"anyOf": [{"enum": sorted(known_passes)}, *entries]}
    top["properties"]["passes"] = {
        "anyOf": [{"type": "array", "items": items}, {"type": "null"}],
        "default": None,
        "description": "in their order; default: the target's list",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


def _without_data(recipe: Recipe) -> list[Mistake]:
    """What is missing where `data.load` is: something to make the samples by, and what they are to look like."""
    if recipe.data.load is not None:
        return []
    if recipe.data.synthesise is None:
        do = "add `load:` to data, or give --data; without any data, `synthesise: {method: inversion}`"
        return [Mistake(("data", "load"), "the key 'data.load' is missing", _CALLABLE, do)]
    found = []
    if recipe.data.arguments:
        do = "take data.arguments out, or add the callable"
        found.append(Mistake(("data", "arguments"), "data.arguments are of no callable", "data.load beside them", do))
    if recipe.teacher.inputs is None:
        do = "add `inputs: [{name: image, shape: [batch, 1, 28, 28]}]`, with your teacher's own sizes, to teacher"
        inputs = "it where there are no data to see the inputs' shapes from"
        found.append(Mistake(("teacher", "inputs"), "the key 'teacher.inputs' is missing", inputs, do))
    return found


def _settled(model: BaseModel, *left_out: str) -> BaseModel:
    """The model as it is read back: a default that its class wrote as 50 becomes the 50.0 that its field holds."""
    return type(model).model_validate(model.model_dump(exclude=set(left_out), by_alias=True))


def _expand(plain: dict[str, Any]) -> None:
    """The short forms written out, in place: `data: x.py:load`, `- prune`. A top key without a value is absent."""
    for key in [key for key, value in plain.items() if value is None]:
        del plain[key]
    if isinstance(plain.get("data"), str):
        plain["data"] = {"load": plain["data"]}
    if isinstance(plain.get("passes"), list):
        plain["passes"] = [{entry: None} if isinstance(entry, str) else entry for entry in plain["passes"]]
    # overrides are written into these values: the document's own, which aliases may share, stay as they are
    for key, value in plain.items():
        plain[key] = _copied(value)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(member) for key, member in value.items()}
    return [_copied(member) for member in value] if isinstance(value, list) else value


def _into_settings(override: Override, plain: Mapping[str, Any]) -> Override:
    """`passes.0.keep_macs` as the place where it stands: `passes.0.prune.keep_macs`."""
    path, entries = override.path, plain.get("passes")
    if path[0] != "passes" or len(path) < 3 or not isinstance(entries, list):
        return override
    index = path[1]
    if not isinstance(index, int) or index >= len(entries) or not isinstance(entries[index], dict):
        return override
    if len(entries[index]) != 1:
        return override
    return Override((*path[:2], next(iter(entries[index])), *path[2:]), override.value, override.where)


def _resolve_paths(plain: dict[str, Any], folder: Callable[[Sequence[Key]], Path]) -> list[Mistake]:
    """Make the recipe's paths absolute, in place; name those where nothing lies."""
    mistakes = []
    target = plain.get("target")
    if isinstance(target, str) and target.endswith(".toml"):
        plain["target"] = str(profile := (folder(("target",)) / Path(target).expanduser()).resolve())
        if not profile.is_file():
            mistakes.append(Mistake(("target",), f"there is no file {profile}", "a target's profile", "mend the path"))
    for at, spec in _named_files(plain):
        section, key = ".".join(map(str, at[:-1])), str(at[-1])
        text = spec[key]
        if key in _FILES:
            what, suffixes, do = _FILES[key]
            spec[key] = file = (folder(at) / Path(text).expanduser()).resolve()
            if file.suffix not in suffixes:
                mistakes.append(Mistake(at, f"{file.name!r} is no {what} file", f"one of {', '.join(suffixes)}", do))
            elif not file.is_file():
                article = "an" if what[0] in "AEIOU" else "a"
                mistakes.append(Mistake(at, f"there is no file {file}", f"{article} {what} file", "mend the path"))
            continue
        place, _, name = str(text).rpartition(":")
        if not _DOTTED.fullmatch(name) or not (place.endswith(".py") or _DOTTED.fullmatch(place)):
            mistakes.append(
                Mistake(at, f"{section}.{key} is {str(text)!r}", _CALLABLE, "name the file and the callable")
            )
        elif place.endswith(".py"):
            file = (folder(at) / Path(place).expanduser()).resolve()
            spec[key] = f"{file}:{name}"
            if not file.is_file():
                mistakes.append(Mistake(at, f"there is no file {file}", "a Python file", "mend the path"))
    return mistakes


def _churn_without_release(recipe: Recipe) -> list[Mistake]:
    """A limit of what changes against the previous release needs that release."""
    if recipe.budget.max_churn is None or recipe.previous is not None:
        return []
    found = "budget.max_churn limits what changes against the previous release, and none is named"
    do = "add `previous:` to the recipe, or leave max_churn out"
    return [Mistake(("budget", "max_churn"), found, "the .onnx file of that release", do)]


def _cold_limit_without_cold_runs(recipe: Recipe) -> list[Mistake]:
    """A limit on the latency of cold runs needs cold runs."""
    if recipe.budget.latency_ms_cold is None or recipe.measure.cold_seconds != 0:
        return []
    found = "measure.cold_seconds is 0, and the budget limits the latency of cold runs"
    return [Mistake(("measure", "cold_seconds"), found, "more than 0", "leave it out, or take the limit out")]


def _named_files(plain: dict[str, Any]) -> Iterator[tuple[tuple[Key, ...], dict[str, Any]]]:
    """Where the recipe names a file, and the mapping that holds it; the wrong type is told by the model.

    In a pass's settings it is every text under the keys `build` and `ask`, and the files of teachers.
    """
    if isinstance(plain.get("previous"), str | Path):
        yield ("previous",), plain
    for section, key in _PATHS:
        spec = plain.get(section)
        if isinstance(spec, dict) and isinstance(spec.get(key), str | Path):
            yield (section, key), spec
    waiting: list[tuple[tuple[Key, ...], Any]] = [(("passes",), plain.get("passes"))]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, list):
            waiting += [((*at, index), member) for index, member in enumerate(value)]
        elif isinstance(value, dict):
            waiting += [((*at, key), member) for key, member in value.items()]
            for key in (*_CODE, *(_FILES if _SOURCES & set(at) else ())):
                if isinstance(value.get(key), str | Path):
                    yield (*at, key), value


def _passes(entries: Any, known: KnownPasses) -> tuple[tuple[AnyPass, ...] | None, list[Mistake]]:
    if entries is None:
        return None, []
    if not isinstance(entries, list):
        found = Mistake(("passes",), f"passes is {entries!r}", "a list of passes", "write each pass as a line `- name`")
        return None, [found]
    made, mistakes = list[AnyPass](), list[Mistake]()
    for index, entry in enumerate(entries):
        at = ("passes", index)
        if not isinstance(entry, dict) or len(entry) != 1:
            form = "a pass's name, or a mapping with that one key"
            do = "write `- prune`, or `- prune: {setting: value}` with the settings indented below the name"
            mistakes.append(Mistake(at, f"passes.{index} is {entry!r}", form, do))
            continue
        name, settings = next(iter(entry.items()))
        if name not in known:
            mistakes.append(unknown("pass", str(name), known, at, "`kdc passes` lists them"))
            continue
        inside = (*at, name)
        try:
            one = known[name].model_validate({} if settings is None else settings)
        except ValidationError as error:
            mistakes += explain(error, known[name], inside, {} if settings is None else settings)
        else:
            mistakes += misread(settings, one.model_dump(), inside)
            made.append(one)
    return tuple(made), mistakes
