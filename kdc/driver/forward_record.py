"""Every call of torch's that a forward makes, so that the first one that goes another way can be named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from kdc.core.user_frames import user_lines

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """One call: what it is of torch's, the module whose forward makes it, and the user's file:line where there is one."""

    function: str
    module: str
    place: str | None
    inputs: Tensors
    outputs: Tensors


class Watching(TorchFunctionMode):
    """Calls `watch(function, args, kwargs, module, run)` in the place of each of torch's calls in a model's forward.

    `module` is the name of the innermost module that runs, "" the model itself; `run()` makes the call.
    """

    def __init__(self, model: nn.Module, watch: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self._running: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        return self.watch(func, args, named, self._running[-1] if self._running else "", lambda: func(*args, **named))

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The model's outputs."""
        with self._following(), self:
            outputs: torch.Tensor = self.model(*inputs)
        return outputs

    @contextmanager
    def _following(self) -> Iterator[None]:
        self._running.clear()
        hooks = []
        for name, module in self.model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: self._end(), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _end(self) -> None:
        self._running.pop()


@torch.no_grad()
def recorded(model: nn.Module, inputs: Tensors) -> list[Call]:
    """The calls of one forward, in their order."""
    calls: list[Call] = []

    def watch(function: Any, args: Any, kwargs: Any, module: str, run: Callable[[], Any]) -> Any:
        given = _tensors((args, kwargs))
        place = next(user_lines(sys._getframe(2)), None)
        result = run()
        name = getattr(function, "__name__", str(function))
        # A call that writes into its first argument gives nothing, or that argument.
        written = args[:1] if name == "__setitem__" else ()
        calls.append(Call(name, module, place and f"{place[0]}:{place[1]}", given, _tensors((result, written))))
        return result

    Watching(model, watch)(*(tensor.clone() for tensor in inputs))
    return calls


def first_unlike(
    one: Sequence[Call], others: Sequence[Sequence[Call]], alike: Callable[[torch.Tensor, Tensors], bool]
) -> Call | None:
    """The first call of `one` whose inputs are like those of all the others, and whose outputs are not.

    Args: alike: whether a tensor of `one` is like those of the others at the same place.
    """
    calls: tuple[Call, ...]
    for calls in zip(one, *others, strict=False):
        if len({call.function for call in calls}) > 1:
            return None  # the forwards go different ways from here on
        if _all_alike((call.inputs for call in calls), alike) and not _all_alike((c.outputs for c in calls), alike):
            return calls[0]
    return None


def _all_alike(tensors: Iterable[Tensors], alike: Callable[[torch.Tensor, Tensors], bool]) -> bool:
    return all(alike(first, tuple(rest)) for first, *rest in zip(*tensors, strict=False))


def _tensors(value: Any) -> Tensors:
    leaves = pytree.tree_leaves(value)
    return tuple(leaf.detach().clone() for leaf in leaves if isinstance(leaf, torch.Tensor))
