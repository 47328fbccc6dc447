"""Which layers a pass changed: told by comparing the models before and after its structure, whatever the pass."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kdc.core.artifact import Artifact

_OURS = frozenset({"kdc", "passes"})


def with_origins(before: Artifact[Any], after: Artifact[Any], step: str) -> Artifact[Any]:
    """The artifact after a pass's `apply`, with the name of the pass beside each layer that it changed or made.

    A layer is a module with weights of its own. It is the same one where it holds the same numbers in the same shapes,
    under its name or another: a pass that only moves it did not change it. What training does to weights later is no
    change of a layer, for it costs no time.
    """
    if not isinstance(before.model, nn.Module) or not isinstance(after.model, nn.Module):
        return after
    known, was = dict(before.origins), _layers(before.model)
    moved = {signature: name for name, signature in reversed(was.items())}
    found = {}
    for name, signature in _layers(after.model).items():
        same = name if was.get(name) == signature else moved.get(signature)
        origin = step if same is None else known.get(same)
        if origin is not None:
            found[name] = origin
    return replace(after, origins=tuple(found.items()))


def _layers(model: nn.Module) -> dict[str, str]:
    """A hash of what each layer holds, by its name."""
    found = {}
    for name, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if own:
            sha = hashlib.sha256(_kind(module).encode())
            for part, tensor in sorted(own.items()):
                flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                sha.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
                sha.update(flat.numpy().tobytes())
            found[name] = sha.hexdigest()
    return found


def _kind(module: nn.Module) -> str:
    """What a pass made of a layer. Other classes are all one: tracing leaves a bare Module that holds their weights."""
    return type(module).__name__ if type(module).__module__.split(".")[0] in _OURS else ""
