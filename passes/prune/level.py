"""How far to prune: the largest of a few fixed levels whose forecast on the target meets the budget."""

from __future__ import annotations

from collections.abc import Callable

LEVELS = (1.0, *(0.8 * (0.01 / 0.8) ** (step / 14) for step in range(15)))
"""Shares of the MACs that are kept: all, and 15 from 0.8 to 0.01 on a logarithmic scale. A fixed grid, so that the
noise of a measurement rarely changes the decision."""


def choose_level(meets: Callable[[float], bool], stop: Callable[[], bool] = lambda: False) -> tuple[float, bool]:
    """The largest level that meets, by bisection (four or five questions), as if smaller levels always cost less.

    Args: stop: whether there is no time for another question. Then it is the largest level that is known to meet; where
        none is, the one that would have been asked next.
    Returns: the level, and whether it meets as far as was asked; the smallest one where none does.
    """
    low, high = 0, len(LEVELS)
    while low < high:
        if stop():
            return LEVELS[high] if high < len(LEVELS) else LEVELS[(low + high) // 2], True
        middle = (low + high) // 2
        if meets(LEVELS[middle]):
            high = middle
        else:
            low = middle + 1
    return (LEVELS[low], True) if low < len(LEVELS) else (LEVELS[-1], False)
