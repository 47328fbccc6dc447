"""A copy of a model that nobody watches."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from kdc.distill.input_copies import clear_hooks

M = TypeVar("M", bound=nn.Module)


def bare_copy(model: M) -> M:
    """A deep copy without the hooks that policies put on the original: they would see the copy's features as its own."""
    made = copy.deepcopy(model)
    for module in made.modules():
        clear_hooks(module)
    return made
