"""Queries, keys and values of attention layers, however a transformer makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.taps import full

Vectors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_TOGETHER = ("qkv", "in_proj", "c_attn", "to_qkv")
_APART = (("q", "k", "v"), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("to_q", "to_k", "to_v"))


def attention_layers(model: nn.Module) -> list[str]:
    """Paths of the modules that a tap can read: `nn.MultiheadAttention`, or linear layers named as is usual.

    That is one layer `qkv` (also `in_proj`, `c_attn`, `to_qkv`), three times as wide as its input, or three called `q`,
    `k`, `v` (also `query`, `q_proj`, `to_q` and so on). In the order of the model's modules.
    """
    return [path for path, module in model.named_modules() if path and _form(module) is not None]


class AttentionTap:
    """Queries, keys and values [batch, tokens, channels] of one attention layer, as the last forward made them."""

    def __init__(self, model: nn.Module, path: str) -> None:
        modules = dict(model.named_modules())
        form = _form(modules[path]) if path in modules else None
        if form is None:
            known = attention_layers(model)
            raise ModelError(
                f"the recipe names the attention layer {path!r}, which {type(model).__name__} does not have",
                do=f"name one of {', '.join(known[:8])}" if known else "this model has none: use another objective",
            )
        self._parts: dict[int, torch.Tensor] = {}
        self._handles = form(modules[path], self._parts)

    @property
    def vectors(self) -> Vectors:
        """Of the last forward."""
        return self._parts[0], self._parts[1], self._parts[2]

    def close(self) -> None:
        """Take the hooks off again, and let go of the last vectors."""
        for handle in self._handles:
            handle.remove()
        self._parts.clear()


_Form = Callable[[nn.Module, dict[int, torch.Tensor]], list[Any]]


def _form(module: nn.Module) -> _Form | None:
    """How this module's vectors are read, where they can be."""
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return _of_torch
    children = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    for name in _TOGETHER:
        if name in children and children[name].out_features == 3 * children[name].in_features:
            return lambda owner, parts: [owner.get_submodule(name).register_forward_hook(_keep_thirds(parts))]
    for names in _APART:
        if all(name in children for name in names):
            return lambda owner, parts: [
                owner.get_submodule(name).register_forward_hook(_keep_one(parts, i)) for i, name in enumerate(names)
            ]
    return None


def _of_torch(owner: nn.Module, parts: dict[int, torch.Tensor]) -> list[Any]:
    """It projects inside one function: its inputs are projected once more, with its own weights."""

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        given = [*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :])][:3]
        weights = module.in_proj_weight.chunk(3)
        biases = (None, None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        for i, (tokens, weight, bias) in enumerate(zip(given, weights, biases, strict=True)):
            vectors = full(F.linear(tokens, weight, bias))
            parts[i] = vectors if module.batch_first else vectors.transpose(0, 1)

    return [owner.register_forward_pre_hook(hook, with_kwargs=True)]


def _keep_thirds(parts: dict[int, torch.Tensor]) -> Any:
    def hook(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        parts.update(enumerate(full(output).chunk(3, dim=-1)))

    return hook


def _keep_one(parts: dict[int, torch.Tensor], place: int) -> Any:
    def hook(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        parts[place] = full(output)

    return hook
