"""Inner layers of a model: which of them are worth comparing, and their features while a model runs.

Hooks belong to one tap on one model and go with it; no class is ever hooked.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.alignment import Layer
from kdc.distill.cka import gram

_WIDTHS = {  # what a module's channels are called, where they stand first, and where they stand last
    "first": ("out_channels", "num_features"),
    "last": ("out_features", "embedding_dim", "embed_dim"),
}


class Tap:
    """Features of named modules, as the last forward gave them. Its hooks belong to one model and go with `close`."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                near = difflib.get_close_matches(path, [name for name in modules if name], 3, 0.0)
                raise ModelError(
                    f"the recipe names the layer {path!r}, which {type(model).__name__} does not have",
                    do=f"name one of its modules, such as {', '.join(near)}" if near else None,
                )
        self.features: dict[str, torch.Tensor] = {}
        self._handles = [modules[path].register_forward_hook(self._keep(path)) for path in dict.fromkeys(paths)]

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            feature = _feature(output)
            if feature is not None:
                self.features[path] = full(feature)

        return hook

    def close(self) -> None:
        """Take the hooks off again, and let go of the last features."""
        for handle in self._handles:
            handle.remove()
        self.features.clear()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 what a forward of mixed precision made in less: objectives are computed in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class InputTap:
    """The first input of a model's last forward."""

    def __init__(self, model: nn.Module) -> None:
        self._given: torch.Tensor | None = None
        self._handle = model.register_forward_pre_hook(self._keep)

    @property
    def first(self) -> torch.Tensor:
        """[batch, ...]."""
        assert self._given is not None
        return self._given

    def _keep(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._given = inputs[0]

    def close(self) -> None:
        """Take the hook off again, and let go of the last input."""
        self._handle.remove()
        self._given = None


def _feature(output: Any) -> torch.Tensor | None:
    """A module's output where it is a tensor, or the first of several (attention gives its weights beside)."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() > 1 else None


def candidates(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[Layer]:
    """The layers of a model that stand for its depth, in the order in which they ran.

    These are the ends of blocks, and of runs of plain layers between blocks, whose output has more than one position;
    where a model has none (an MLP), those that give vectors. What stands inside a block of the same output shape is left
    to the block's end, and the model's own output is no inner layer.
    """
    layers = _seen(model, inputs)
    modules = dict(model.named_modules())
    maps = [layer for layer in layers if math.prod(layer.positions) > 1]
    kept: list[Layer] = []
    for layer in maps or layers:
        shape_of = {other.path: other.shape for other in layers}
        if any(not _is_stack(modules[a]) and shape_of.get(a) == layer.shape for a in _ancestors(layer.path)):
            continue
        before = kept[-1] if kept else layer
        goes_on = not any(modules[layer.path].children()) or before.path.startswith(f"{layer.path}.")
        if kept and goes_on and before.shape == layer.shape and not any(modules[before.path].children()):
            kept.pop()  # convolution, norm, activation: the last of them stands for all
        kept.append(layer)
    return kept


def described(model: nn.Module, inputs: tuple[torch.Tensor, ...], paths: Sequence[str]) -> list[Layer]:
    """These modules of a model as layers.

    Raises: ModelError where one is not there, or gives no feature of the batch.
    """
    Tap(model, paths).close()
    layers = {layer.path: layer for layer in _seen(model, inputs, merged=False)}
    for path in paths:
        if path not in layers:
            raise ModelError(
                f"the layer {path!r} of {type(model).__name__} gives no tensor [batch, channels, ...] of numbers",
                do=f"name one of {', '.join(list(layers)[:8])}",
            )
    return [layers[path] for path in paths]


def given_to(model: nn.Module, inputs: tuple[torch.Tensor, ...], paths: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shapes, without the batch, of what these modules take when the model runs, by path.

    Raises: ModelError where one takes other than one tensor of numbers.
    """
    found: dict[str, tuple[int, ...]] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if len(tensors) != 1 or not args or args[0] is not tensors[0] or not tensors[0].is_floating_point():
                raise ModelError(
                    f"the module {path!r} takes {len(tensors)} tensors: expected one of numbers, to run it by itself",
                    do="name other modules of the model",
                )
            found[path] = tuple(tensors[0].shape[1:])

        return hook

    modules = dict(model.named_modules())
    handles = [modules[path].register_forward_pre_hook(keep(path), with_kwargs=True) for path in dict.fromkeys(paths)]
    try:
        _watch(model, tuple(tensor[:2] for tensor in inputs), lambda path, feature: None)
    finally:
        for handle in handles:
            handle.remove()
    return found


def grams(model: nn.Module, inputs: tuple[torch.Tensor, ...], layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
    """The `gram` of each layer over the inputs, by path."""
    found: dict[str, torch.Tensor] = {}
    wanted = {layer.path for layer in layers}

    def keep(path: str, feature: torch.Tensor) -> None:
        if path in wanted:
            found[path] = gram(feature)

    _watch(model, inputs, keep)
    return found


def _seen(model: nn.Module, inputs: tuple[torch.Tensor, ...], merged: bool = True) -> list[Layer]:
    """Every module's output for two examples as a layer; merged: of modules that hand one tensor on, the outermost."""
    calls = 0
    last: tuple[str, torch.Tensor | None] = "", None
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    few = tuple(tensor[:2] for tensor in inputs)

    def keep(path: str, feature: torch.Tensor) -> None:
        nonlocal calls, last
        calls += 1
        if feature is last[1] and merged:
            found.pop(last[0], None)
        found.pop(path, None)
        if len(feature) == len(few[0]):
            found[path] = calls, tuple(feature.shape[1:])
        last = path, feature

    output = _feature(_watch(model, few, keep))
    if merged and output is not None and last[0] in found and output.shape[1:] == found[last[0]][1]:
        del found[last[0]]
    widths = {side: _widths(model, names) for side, names in _WIDTHS.items()}
    return [
        Layer(path, shape, _channels_last(shape, widths["first"], widths["last"]), when / calls)
        for path, (when, shape) in found.items()
    ]


@torch.no_grad()
def _watch(model: nn.Module, inputs: tuple[torch.Tensor, ...], keep: Callable[[str, torch.Tensor], None]) -> Any:
    """Run a model in evaluation mode, showing each module's feature as it comes; the mode is left as it was."""

    def hook_of(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            feature = _feature(output)
            if feature is not None:
                keep(path, feature)

        return hook

    handles = [module.register_forward_hook(hook_of(path)) for path, module in model.named_modules() if path]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _widths(model: nn.Module, names: Sequence[str]) -> set[int]:
    found = {getattr(module, name, None) for module in model.modules() for name in names}
    if names is _WIDTHS["last"]:
        found |= {m.normalized_shape[0] for m in model.modules() if isinstance(m, nn.LayerNorm) and m.normalized_shape}
    return {width for width in found if isinstance(width, int)}


def _channels_last(shape: tuple[int, ...], first: set[int], last: set[int]) -> bool:
    """Tokens and some transformers' maps have their channels last; where both readings fit, tokens of 2 dimensions do."""
    if len(shape) == 1:
        return False
    fits_first, fits_last = shape[0] in first, shape[-1] in last
    return fits_last if fits_first != fits_last else len(shape) == 2


def _ancestors(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _is_stack(module: nn.Module) -> bool:
    """It holds blocks in a row, and is none itself."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return True
    for held in module.children():
        if isinstance(held, nn.Sequential | nn.ModuleList):
            kinds = [type(block) for block in held if any(block.children())]
            if len(kinds) > len(set(kinds)):
                return True
    return False
