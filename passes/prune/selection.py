"""Which units stay, given their scores and how many multiply-accumulates may be left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, gcd, lcm
from typing import Literal

import numpy as np

from passes.prune.channels import ChannelGraph, Group, Mask
from passes.prune.importance import Scores

LAYER_STEPS = 512
"""How finely the share that every layer keeps is searched; far finer than a channel of any usual width."""


@dataclass(frozen=True)
class Limits:
    """What no selection may break. `alignment`: kept channels are a multiple of it, in layers that are wider than it.

    `channels_min`: no layer keeps fewer; `max_layer_fraction`: no layer loses a larger share.
    """

    alignment: int
    channels_min: int
    max_layer_fraction: float

    def counts(self, group: Group) -> tuple[int, ...]:
        """How many units this group may keep, ascending; the last is all of them."""
        if not group.prunable:
            return (group.size,)
        fewest = min(group.channels)
        floor = max(1, ceil(self.channels_min / fewest), ceil(group.size * (1 - self.max_layer_fraction) - 1e-9))
        step = lcm(*(self.alignment // gcd(self.alignment, channels) for channels in group.channels))
        if group.size <= step:
            step = 1
        return (*range(ceil(floor / step) * step, group.size, step), group.size)


@dataclass(frozen=True)
class Selector:
    """Keeps the best units within a share of the model's multiply-accumulates; of equal scores, the first units."""

    graph: ChannelGraph
    scores: Scores
    limits: Limits
    scope: Literal["global", "layer"]

    def keep(self, fraction: float) -> Mask:
        """The mask with the most units whose MACs are at most this share of the model's; the floor where none is."""
        target = fraction * self.graph.macs(self.graph.without([]))
        ranked = [sorted(group.units, key=lambda unit: (-self.scores[unit], unit)) for group in self.graph.groups]
        allowed = [np.array(self.limits.counts(group)) for group in self.graph.groups]
        wanted = self._by_threshold(ranked) if self.scope == "global" else self._by_share()
        steps = self._thresholds() if self.scope == "global" else LAYER_STEPS + 1

        def counts(step: int) -> list[int]:
            return [int(own[np.searchsorted(own, want)]) for own, want in zip(allowed, wanted(step), strict=True)]

        def mask(kept: list[int]) -> Mask:
            return self.graph.without([unit for own, count in zip(ranked, kept, strict=True) for unit in own[count:]])

        low, high = 0, steps - 1  # step 0 keeps everything, the last one the floor
        while low < high:
            middle = (low + high) // 2
            if self.graph.macs(mask(counts(middle))) <= target:
                high = middle
            else:
                low = middle + 1
        return mask(self._filled(counts(low), counts(max(low - 1, 0)), ranked, target, mask))

    def _filled(
        self,
        kept: list[int],
        more: list[int],
        ranked: list[list[int]],
        target: float,
        mask: Callable[[list[int]], Mask],
    ) -> list[int]:
        """As many groups as fit go one step back, the best removed units first: a step of all at once is coarse."""
        growing = [place for place, (now, then) in enumerate(zip(kept, more, strict=True)) if then > now]
        for place in sorted(growing, key=lambda place: (-self.scores[ranked[place][kept[place]]], place)):
            larger = [*kept[:place], more[place], *kept[place + 1 :]]
            if self.graph.macs(mask(larger)) <= target:
                kept = larger
        return kept

    def _thresholds(self) -> int:
        return len(np.unique(self.scores)) + 1

    def _by_threshold(self, ranked: list[list[int]]) -> Callable[[int], list[int]]:
        """Step n removes every unit whose score is among the n smallest values."""
        values = np.append(np.unique(self.scores), np.inf)
        ascending = [np.sort(self.scores[own]) for own in ranked]
        return lambda step: [len(own) - int(np.searchsorted(own, values[step], side="left")) for own in ascending]

    def _by_share(self) -> Callable[[int], list[int]]:
        """Step n keeps the same share of every group."""
        return lambda step: [ceil(group.size * (1 - step / LAYER_STEPS) - 1e-9) for group in self.graph.groups]
