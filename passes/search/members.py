"""The members of the spaces: drawn, mutated, crossed, built and counted. The one place that knows every space."""

from __future__ import annotations

import random as chance
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.errors import ModelError
from kdc.core.torch_macs import counted
from kdc.core.usercode import load_callable
from passes.search.construct import Image, build
from passes.search.shrink import Shrinker
from passes.search.shrunk import Shrinks
from passes.search.spaces import (
    OwnSpace,
    OwnStudent,
    ShrunkSpace,
    ShrunkStudent,
    Space,
    StackedSpace,
    Student,
    Value,
)
from passes.search.stacks import Stacks, cells_of

TRIES = 8
"""How often a mutation is drawn anew where it changed nothing; a space may have a single member."""


@dataclass(frozen=True)
class _Owns:
    """A space of the user's own callable."""

    space: OwnSpace

    def draw(self, random: chance.Random) -> OwnStudent:
        """Each choice by itself."""
        return self._student({name: random.choice(values) for name, values in self.space.choices.items()})

    def mutate(self, student: OwnStudent, random: chance.Random) -> OwnStudent:
        """One choice made anew."""
        name = random.choice(list(self.space.choices))
        return self._student({**student.arguments, name: random.choice(self.space.choices[name])})

    def cross(self, a: OwnStudent, b: OwnStudent, random: chance.Random) -> OwnStudent:
        """Each choice as in one of the two."""
        return self._student({name: random.choice((a, b)).arguments[name] for name in self.space.choices})

    def smallest(self, macs: Callable[[OwnStudent], float]) -> OwnStudent:
        """From the first value of each choice on, each choice in turn set to the value with the fewest MACs."""
        best = {name: values[0] for name, values in self.space.choices.items()}
        for name, values in self.space.choices.items():
            trials = [self._student({**best, name: value}) for value in values]
            best = min(trials, key=macs).arguments if len(trials) > 1 else best
        return self._student(best)

    def _student(self, arguments: dict[str, Value]) -> OwnStudent:
        return OwnStudent(build=self.space.build, arguments=arguments)


class Members:
    """The members of some spaces for one incoming model.

    Args: artifact: the incoming model, whose inputs and outputs every member has.
        spaces: at least one. A shrunk one without an alignment keeps any number of channels.
        seed: of the members' first weights.
    """

    def __init__(self, artifact: Artifact[nn.Module], spaces: tuple[Space, ...], seed: int) -> None:
        self.artifact = artifact
        self.spaces = spaces
        self.seed = seed
        self._shrinker = Shrinker(artifact)

    def check(self) -> None:
        """Raises: ModelError where a space cannot take the model's inputs, or nothing of it fits; names its family."""
        for space in self.spaces:
            if isinstance(space, ShrunkSpace):
                self._shrinks(space).check()
            elif isinstance(space, OwnSpace):
                load_callable(space.build, Path.cwd(), "search", ModelError)
            else:
                self._check_reductions(space)

    def _check_reductions(self, space: StackedSpace) -> None:
        image = Image.of(self.artifact, space.family)
        least, most = Stacks(space, image).reductions
        if least > most:
            raise ModelError(
                f"search.spaces: {space.family}: at least {least} layers have stride 2, and an image of "
                f"{image.height}x{image.width} pixels can be halved {image.reductions} times",
                do="lower the least of its reductions, or add 1 to its first_strides",
            )

    def draw(self, random: chance.Random) -> Student:
        """A random member of a random space."""
        return self._drawn(random.choice(self.spaces), random)

    def mutate(self, student: Student, random: chance.Random) -> Student:
        """A member of the student's space that differs in little; the student itself where the space has no other.

        Raises: ModelError where there is no space of its family.
        """
        space = self._space(student)
        return self._other((student,), lambda: self._mutated(space, student, random))

    def grow(self, student: Student, random: chance.Random) -> Student:
        """A larger member of the student's space: some widths a step up, or a block more.

        Raises: as `mutate`.
        """
        space = self._space(student)
        return self._other((student,), lambda: self._grown(space, student, random))

    def cross(self, a: Student, b: Student, random: chance.Random) -> Student:
        """A member of their space that mixes both; a mutation of one of them where they come from different spaces.

        Raises: ModelError where there is no space of a family.
        """
        space, one = self._space(a), random.choice((a, b))
        if space is not self._space(b):
            return self.mutate(one, random)
        child = self._other((a, b), lambda: self._crossed(space, a, b, random))
        return self.mutate(one, random) if child in (a, b) else child

    def smallest(self) -> list[Student]:
        """For each space a member with the fewest multiply-accumulates, or nearly so.

        Raises: ModelError where a space does not fit the model.
        """
        return [self._smallest(space) for space in self.spaces]

    def build(self, student: Student) -> nn.Module:
        """The student's network: see `build`."""
        return build(student, self.artifact, self.seed, self._shrinker)

    def size(self, model: nn.Module) -> tuple[int, int]:
        """Parameters, and multiply-accumulates of one sample. The model's mode is left as it was."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), counted() as counter:
                model(*(example(spec) for spec in self.artifact.inputs))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2

    def _drawn(self, space: Space, random: chance.Random) -> Student:
        if isinstance(space, ShrunkSpace):
            return self._shrinks(space).draw(random)
        if isinstance(space, OwnSpace):
            return _Owns(space).draw(random)
        stacks = self._stacks(space)
        return stacks.student(stacks.draw(random))

    def _mutated(self, space: Space, student: Student, random: chance.Random) -> Student:
        if isinstance(space, ShrunkSpace) and isinstance(student, ShrunkStudent):
            return self._shrinks(space).mutate(student, random)
        if isinstance(space, OwnSpace) and isinstance(student, OwnStudent):
            return _Owns(space).mutate(student, random)
        assert not isinstance(space, ShrunkSpace | OwnSpace)
        assert not isinstance(student, ShrunkStudent | OwnStudent)
        stacks = self._stacks(space)
        return stacks.student(stacks.mutate(stacks.mended(cells_of(student), random), random))

    def _grown(self, space: Space, student: Student, random: chance.Random) -> Student:
        if isinstance(space, ShrunkSpace) and isinstance(student, ShrunkStudent):
            return self._shrinks(space).grow(student, random)
        if isinstance(space, OwnSpace) and isinstance(student, OwnStudent):
            return _Owns(space).mutate(student, random)  # which of its values are larger, only the user knows
        assert not isinstance(space, ShrunkSpace | OwnSpace)
        assert not isinstance(student, ShrunkStudent | OwnStudent)
        stacks = self._stacks(space)
        return stacks.student(stacks.grow(stacks.mended(cells_of(student), random), random))

    def _crossed(self, space: Space, a: Student, b: Student, random: chance.Random) -> Student:
        if isinstance(space, ShrunkSpace) and isinstance(a, ShrunkStudent) and isinstance(b, ShrunkStudent):
            return self._shrinks(space).cross(a, b, random)
        if isinstance(space, OwnSpace) and isinstance(a, OwnStudent) and isinstance(b, OwnStudent):
            return _Owns(space).cross(a, b, random)
        assert not isinstance(space, ShrunkSpace | OwnSpace)
        assert not isinstance(a, ShrunkStudent | OwnStudent)
        assert not isinstance(b, ShrunkStudent | OwnStudent)
        stacks, first, second = self._stacks(space), cells_of(a), cells_of(b)
        share = random.random()  # the front of one and the back of the other, cut at the same share of the depth
        cut, join = max(1, round(share * len(first))), round(share * len(second))
        return stacks.student(stacks.mended([*first[:cut], *second[join:]], random))

    def _smallest(self, space: Space) -> Student:
        if isinstance(space, ShrunkSpace):
            return self._shrinks(space).smallest()
        if isinstance(space, OwnSpace):
            return _Owns(space).smallest(self._macs)
        stacks = self._stacks(space)
        return min(map(stacks.student, stacks.smallest()), key=self._macs)

    def _macs(self, student: Student) -> float:
        """Infinite where it cannot be built: the user's callable may refuse some of its choices, and tells when drawn."""
        try:
            return self.size(self.build(student))[1]
        except ModelError:
            return inf

    def _other(self, known: tuple[Student, ...], make: Callable[[], Student]) -> Student:
        made = make()
        for _ in range(TRIES):
            if made not in known:
                break
            made = make()
        return made

    def _space(self, student: Student) -> Space:
        """The space that the student is a member of, else the first of its family."""
        own = [space for space in self.spaces if space.family == student.family]
        if isinstance(student, OwnStudent):
            own = [space for space in own if isinstance(space, OwnSpace) and space.holds(student)]
        if not own:
            raise ModelError(
                f"search: a {student.family} structure belongs to none of the spaces "
                f"{', '.join(space.family for space in self.spaces)}",
                do=f"add a space of the family {student.family} that holds it to search.spaces",
            )
        return next((space for space in own if space.holds(student)), own[0])

    def _stacks(self, space: StackedSpace) -> Stacks:
        return Stacks(space, Image.of(self.artifact, space.family))

    def _shrinks(self, space: ShrunkSpace) -> Shrinks:
        return Shrinks(space, self._shrinker)
