"""The space of the incoming model with less of it."""

from __future__ import annotations

import random as chance
from collections.abc import Collection
from dataclasses import dataclass

from kdc.core.errors import ModelError
from passes.search.shrink import Shrinker, count
from passes.search.spaces import ShrunkSpace, ShrunkStudent
from passes.search.stacks import beside


@dataclass(frozen=True)
class Shrinks:
    """A space of shrunk models. A member is drawn as a share for each group; the structure tells the channels."""

    space: ShrunkSpace
    shrinker: Shrinker

    @property
    def parts(self) -> tuple[str, ...]:
        """What may be left out."""
        return self.shrinker.parts if self.space.depth else ()

    @property
    def widths(self) -> list[float]:
        """The shares, ascending."""
        return sorted(set(self.space.widths))

    def check(self) -> None:
        """Raises: ModelError where nothing of the model can be left out."""
        if not self.shrinker.groups() and not self.parts:
            raise ModelError(
                "search.spaces: shrunk: no channels and no block of the model can be left out",
                do="take it out of search.spaces",
            )

    def draw(self, random: chance.Random) -> ShrunkStudent:
        """A member: how many blocks go and a common width are drawn first, so that small and large ones come often."""
        gone = random.sample(self.parts, random.randint(0, len(self.parts)))
        centre = random.choice(self.widths)
        without = self._ordered(gone)
        shares = {g.name: beside(centre, self.widths, random.randint(-1, 1)) for g in self.shrinker.groups(without)}
        return self._student(without, shares)

    def mutate(self, student: ShrunkStudent, random: chance.Random) -> ShrunkStudent:
        """A block more or less, another share for one group, or a step for all of them."""
        shares, before = self._shares(student), student.without
        edits = [*(["block"] if self.parts else []), *(["group", "all"] if shares else [])]
        edit = random.choice(edits) if edits else None
        without = before
        if edit == "block":
            without = self._ordered({*before} ^ {random.choice(self.parts)})
        elif edit == "group":
            shares[random.choice(list(shares))] = random.choice(self.widths)
        elif edit == "all":
            step = random.choice((-1, 1))
            shares = {name: beside(share, self.widths, step) for name, share in shares.items()}
        return self._student(without, self._carried(before, shares, without))

    def grow(self, student: ShrunkStudent, random: chance.Random) -> ShrunkStudent:
        """A block more, or some of the groups a share up."""
        shares, before = self._shares(student), student.without
        without = before
        if before and (not shares or random.random() < 0.5):
            without = self._ordered({*before} - {random.choice(before)})
        elif shares:
            for name in random.sample(list(shares), random.randint(1, len(shares))):
                shares[name] = beside(shares[name], self.widths, 1)
        return self._student(without, self._carried(before, shares, without))

    def cross(self, a: ShrunkStudent, b: ShrunkStudent, random: chance.Random) -> ShrunkStudent:
        """Each block goes as in one of the two, and each group keeps the share of one of the two."""
        without = self._ordered([part for part in self.parts if part in random.choice((a, b)).without])
        first = self._carried(a.without, self._shares(a), without)
        second = self._carried(b.without, self._shares(b), without)
        return self._student(without, {name: random.choice((first[name], second[name])) for name in first})

    def smallest(self) -> ShrunkStudent:
        """Without any of the parts, and all groups at the least share."""
        groups = self.shrinker.groups(self.parts)
        return self._student(self.parts, {group.name: self.widths[0] for group in groups})

    def _ordered(self, without: Collection[str]) -> tuple[str, ...]:
        """In the model's order, so that one set of parts is one structure."""
        return tuple(part for part in self.parts if part in without)

    def _student(self, without: tuple[str, ...], shares: dict[str, float]) -> ShrunkStudent:
        kept = self.shrinker.kept_for(shares, self.space.alignment, without)
        return ShrunkStudent(without=without, kept=kept)

    def _shares(self, student: ShrunkStudent) -> dict[str, float]:
        """The share of each group that gives the number of units the student keeps, or the nearest to it."""
        kept, shares = self.shrinker.counts(student), {}
        for group in self.shrinker.groups(student.without):
            misses = {w: abs(count(group, w, self.space.alignment) - kept[group.name]) for w in self.widths}
            shares[group.name] = min(self.widths, key=misses.__getitem__)
        return shares

    def _carried(self, before: tuple[str, ...], shares: dict[str, float], now: tuple[str, ...]) -> dict[str, float]:
        """Shares for the groups of the model with other parts left out: of the group that had the same layer, else whole."""
        owner = {layer: group.name for group in self.shrinker.groups(before) for layer in group.layers}
        return {
            group.name: next((shares[owner[layer]] for layer in group.layers if layer in owner), self.widths[-1])
            for group in self.shrinker.groups(now)
        }
