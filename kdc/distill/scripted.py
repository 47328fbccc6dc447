"""TorchScript: refused, but for a file that is only asked, where the user allows it.

A ScriptModule is a program of its own: when it is called, operators such as `aten::save` can write files, and nothing of
Python's sees it. Its code is no Python either, so that torch.export cannot read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.teacher_settings import TeacherSource, TorchScriptSource

FLAG = "--allow-torchscript"


def refuse_scripted(model: nn.Module, where: str) -> None:
    """Raises: ModelError where the module is TorchScript, or one that it holds, in a list or a mapping too."""
    found = next(_scripted(model, "", set()), None)
    if found is None:
        return
    what = f"{found} in it is" if found else "it is"
    raise ModelError(
        f"{where} returned a {type(model).__name__}: {what} TorchScript, which can write files when it is called, and which "
        "torch.export cannot read",
        do="return the nn.Module itself, without torch.jit.script, torch.jit.trace or torch.jit.load",
    )


def check_torchscript(sources: Iterable[TeacherSource], allowed: bool) -> None:
    """Raises: ModelError where one of these teachers is a TorchScript file, and those are not allowed."""
    for source in sources:
        if isinstance(source, TorchScriptSource) and not allowed:
            raise ModelError(
                f"teacher {source.torchscript}: a TorchScript file can write files when it is called, wherever it is from",
                do=f"name the teacher by `build` or as an ONNX file; or, if you trust this file, add {FLAG} "
                "(from Python: allow_torchscript=True)",
            )


def _scripted(value: object, name: str, seen: set[int]) -> Iterator[str]:
    """The names of the TorchScript modules that a value is or holds, in lists and mappings too."""
    if id(value) in seen:
        return
    seen.add(id(value))
    held: Iterable[tuple[str, object]] = ()
    if isinstance(value, torch.jit.ScriptModule):
        yield name
    elif isinstance(value, nn.Module):
        own = {key: one for key, one in vars(value).items() if key != "_modules"} | value._modules
        held = [(f"{name}.{key}".lstrip("."), one) for key, one in own.items()]
    elif isinstance(value, Mapping):
        held = [(f"{name}[{key!r}]", one) for key, one in value.items()]
    elif isinstance(value, list | tuple):
        held = [(f"{name}[{number}]", one) for number, one in enumerate(value)]
    for key, one in held:
        yield from _scripted(one, key, seen)
