"""A copy of a model that nobody watches."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def bare_copy(model: M) -> M:
    """A deep copy without the hooks that policies put on the original: they would see the copy's features as its own."""
    made = copy.deepcopy(model)
    for module in made.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return made
