"""A teacher from where its settings say it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import nn

from kdc.core.contract import Context
from kdc.core.errors import ModelError, TargetError
from kdc.core.store import sha256_of
from kdc.core.usercode import call, load_callable, source_fingerprint
from kdc.core.weights import load_weights
from kdc.distill.ask import AskedTeacher
from kdc.distill.predict_only import Apart, OnnxTeacher, torchscript
from kdc.distill.prepared import prepare
from kdc.distill.scripted import check_torchscript, refuse_scripted
from kdc.distill.several import Several
from kdc.distill.teacher_answers import digest_of
from kdc.distill.teacher_settings import AskedSource, BuiltSource, OnnxSource, TeacherSource, TorchScriptSource
from targets.door.admit import admit

_FEW = 2  # samples that show how a module takes them


def load_source(source: TeacherSource, context: Context) -> nn.Module:
    """The teacher in evaluation mode, without gradients; its `digest` is of all that decides its answers.

    What can only be asked has `predict_only`, no parameters, and is loaded when it is first asked: where all of its
    answers are in the cache, never.
    Raises: ModelError where its code, its file or its weights cannot be used, and for a TorchScript file unless the
        context allows it.
    """
    match source:
        case BuiltSource():
            return _built(source, context)
        case OnnxSource(onnx=path):
            return OnnxTeacher(source_digest(source), _present(path))
        case TorchScriptSource(torchscript=path):
            check_torchscript([source], context.allow_torchscript)
            _present(path)
            return Apart(source_digest(source), lambda: torchscript(path))
        case AskedSource():
            function = load_callable(source.ask, Path.cwd(), "teacher", ModelError)
            root = context.cache_root or context.cache
            # The budget is of the service, whatever becomes of the function's code.
            named = hashlib.sha256(source.ask.encode()).hexdigest()[:16]
            return AskedTeacher(source_digest(source), function, source, root, root / f"queries-{named}.json")


def taught(context: Context, teachers: Sequence[Literal["own"] | TeacherSource]) -> Context:
    """The context with the teachers of a training in the place of the recipe's own; several answer as one, stacked.

    Raises: ModelError where one of them cannot be loaded.
    """
    if tuple(teachers) == ("own",):
        return context
    made = [context.teacher if one == "own" else load_source(one, context) for one in teachers]
    if len(made) == 1:
        return replace(context, teacher=made[0])
    together = Several(made)
    # What can only be asked has no weights that would tell it from another.
    together.digest = hashlib.sha256("/".join(map(digest_of, made)).encode()).hexdigest()  # type: ignore[assignment]
    return replace(context, teacher=together)


def files(source: TeacherSource) -> tuple[Path, ...]:
    """The files whose bytes decide its answers.

    Raises: ModelError where an ONNX file, or one that its weights lie in, is not admitted (`targets.door.admit`).
    """
    match source:
        case BuiltSource(weights=weights):
            return () if weights is None else (weights,)
        case OnnxSource(onnx=path):
            return _onnx_files(path)
        case TorchScriptSource(torchscript=path):
            return (path,)
        case AskedSource():
            return ()


def code(source: TeacherSource) -> tuple[str, ...]:
    """The user's callables that it runs, "path.py:name"."""
    match source:
        case BuiltSource(build=spec) | AskedSource(ask=spec):
            return (spec,)
        case _:
            return ()


def _built(source: BuiltSource, context: Context) -> nn.Module:
    digest = source_digest(source, context.seed)
    samples = context.data.calibration[:_FEW].inputs
    if source.apart:
        return Apart(digest, lambda: _made(source, context.seed, samples))
    model = _made(source, context.seed, samples)
    if not hasattr(model, "digest"):  # a name that the user's own class may have
        model.digest = digest  # type: ignore[assignment]
    return model


def _made(source: BuiltSource, seed: int, samples: tuple[torch.Tensor, ...]) -> nn.Module:
    where = f"teacher {source.build}"
    builder = load_callable(source.build, Path.cwd(), "teacher", ModelError)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a builder that initialises weights does so by the recipe's seed
        model = call(builder, source.arguments, where, ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{where} returned a {type(model).__name__}", do="return a torch.nn.Module")
    refuse_scripted(model, where)
    if source.weights is not None:
        load_weights(model, source.weights)
    prepare(model, samples)
    return model


def named_in(value: Any) -> Iterator[TeacherSource]:
    """The teachers named anywhere in some settings, in their order."""
    if isinstance(value, BuiltSource | OnnxSource | TorchScriptSource | AskedSource):
        yield value
    elif isinstance(value, BaseModel):
        for _, member in value:
            yield from named_in(member)
    elif isinstance(value, tuple):
        for member in value:
            yield from named_in(member)


def source_digest(source: TeacherSource, seed: int | None = None) -> str:
    """SHA-256 of what decides the answers: settings, sources of code, bytes of files."""
    left_out = {"weights", "onnx", "torchscript", "apart", "queries", "batch", "tries"}  # where they lie, and how asked
    parts = {
        "settings": source.model_dump(mode="json", exclude=left_out),
        "kind": type(source).__name__,
        "files": [sha256_of(_present(path)) for path in files(source)],
        "code": [source_fingerprint(load_callable(spec, Path.cwd(), "teacher", ModelError)) for spec in code(source)],
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"teacher: there is no file {path}", do="mend the path in training.teachers")
    return path


def _onnx_files(path: Path) -> tuple[Path, ...]:
    """The ONNX file, and those that its external weights lie in."""
    try:
        examined = admit(_present(path))
    except TargetError as error:
        raise ModelError(f"training.teachers: {error}") from error
    return (path,) if examined is None else (path, *examined.weights)
