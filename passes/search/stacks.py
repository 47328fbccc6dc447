"""The spaces of stacked layers and blocks: plain, residual and mobile members as rows of cells."""

from __future__ import annotations

import random as chance
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from passes.search.construct import Image
from passes.search.spaces import (
    STEM_KERNEL,
    MobileBlock,
    MobileSpace,
    MobileStudent,
    PlainLayer,
    PlainSpace,
    PlainStudent,
    ResidualBlock,
    ResidualStudent,
    Stacked,
    StackedSpace,
)

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Cell:
    """A layer or block of any of the stacked families; what a family lacks stays as it is here."""

    channels: int
    stride: Literal[1, 2] = 1
    kernel: int = STEM_KERNEL
    expansion: int = 1


@dataclass(frozen=True)
class Stacks:
    """A stacked space on an image: its members as cells, the first layer first."""

    space: StackedSpace
    image: Image

    @property
    def reductions(self) -> tuple[int, int]:
        """Least and most cells that have stride 2, as the image's size allows."""
        least, most = self.space.reductions
        return max(least, min(self.space.first_strides) - 1), min(most, self.image.reductions)

    @property
    def lengths(self) -> tuple[int, int]:
        """Least and most cells: no fewer than the reductions need."""
        least, most = self.space.layers
        return max(least, self.reductions[0] + 2 - max(self.space.first_strides)), most

    @property
    def stemmed(self) -> bool:
        """Whether the first cell is a stem, whose width is a choice of its own."""
        return not isinstance(self.space, PlainSpace)

    @property
    def stems(self) -> list[int]:
        """Widths of the first cell."""
        space = self.space
        return sorted(set(space.channels if isinstance(space, PlainSpace) else space.stem))

    @property
    def channels(self) -> list[int]:
        """Widths of the others."""
        return sorted(set(self.space.channels))

    @property
    def kernels(self) -> list[int]:
        """Kernels of all cells but a stem."""
        return sorted(set(getattr(self.space, "kernels", (STEM_KERNEL,))))

    @property
    def expansions(self) -> list[int]:
        """Expansions of all cells but a stem."""
        return sorted(set(getattr(self.space, "expansions", (1,))))

    def draw(self, random: chance.Random) -> list[Cell]:
        """A member. The narrowest and the widest layer are drawn first, so that small and large ones come often."""
        length = random.randint(*self.lengths)
        top = random.randrange(len(self.channels))
        bottom = random.randint(0, top)
        cells = [
            Cell(
                self.channels[random.randint(bottom, top)],
                1,
                random.choice(self.kernels),
                random.choice(self.expansions),
            )
            for _ in range(length)
        ]
        if self.stemmed:
            fitting = [width for width in self.stems if width <= self.channels[top]] or self.stems[:1]
            cells[0] = Cell(random.choice(fitting))
        places = random.sample(range(length), min(length, random.randint(*self.reductions)))
        cells = [replace(cell, stride=2 if place in places else 1) for place, cell in enumerate(cells)]
        return self.mended(cells, random)

    def mutate(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        """A member that differs in one or two respects: a width, all widths, a kernel, an expansion, a stride, depth."""
        for _ in range(random.randint(1, 2)):
            edits = [self._width, self._scale, self._cell, self._stride, self._longer, self._shorter]
            cells = self.mended(random.choice(edits)(cells, random), random)
        return cells

    def grow(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        """Some of the widths a step up."""
        places = random.sample(range(len(cells)), random.randint(1, len(cells)))
        wider = [
            replace(cell, channels=beside(cell.channels, self.channels if place else self.stems, 1))
            if place in places
            else cell
            for place, cell in enumerate(cells)
        ]
        return self.mended(wider, random)

    def mended(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        """The member of the space that is nearest to these cells: allowed choices, widths in order, enough strides."""
        least, most = self.lengths
        while len(cells) > most:
            place = random.randrange(1, len(cells))
            cells = cells[:place] + cells[place + 1 :]
        while len(cells) < least:
            cells = [*cells, replace(cells[-1], stride=1)]
        cells = [
            replace(
                cell,
                channels=nearest(cell.channels, self.channels),
                kernel=nearest(cell.kernel, self.kernels),
                expansion=nearest(cell.expansion, self.expansions),
            )
            if place or not self.stemmed
            else Cell(nearest(cell.channels, self.stems), cell.stride)
            for place, cell in enumerate(cells)
        ]
        body = 1 if self.stemmed else 0
        widths = sorted(cell.channels for cell in cells[body:])
        cells[body:] = [replace(cell, channels=width) for cell, width in zip(cells[body:], widths, strict=True)]
        return self._strided(cells, random)

    def _strided(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        """Strides set and taken away at random until their number is allowed."""
        strides: list[Literal[1, 2]] = [cell.stride for cell in cells]
        if strides[0] not in self.space.first_strides:
            strides[0] = self.space.first_strides[0]
        free = list(range(0 if len(set(self.space.first_strides)) == 2 else 1, len(cells)))
        least, most = self.reductions
        while strides.count(2) > most:
            strides[random.choice([place for place in free if strides[place] == 2])] = 1
        while strides.count(2) < least:
            strides[random.choice([place for place in free if strides[place] == 1])] = 2
        return [replace(cell, stride=stride) for cell, stride in zip(cells, strides, strict=True)]

    def _width(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        place = random.randrange(len(cells))
        choices = self.stems if place == 0 else self.channels
        return _changed(cells, place, replace(cells[place], channels=random.choice(choices)))

    def _scale(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        step = random.choice((-1, 1))
        return [
            replace(cell, channels=beside(cell.channels, self.channels if place else self.stems, step))
            for place, cell in enumerate(cells)
        ]

    def _cell(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        place = random.randrange(len(cells))
        kernel, expansion = random.choice(self.kernels), random.choice(self.expansions)
        return _changed(cells, place, replace(cells[place], kernel=kernel, expansion=expansion))

    def _stride(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        place = random.randrange(len(cells))
        return _changed(cells, place, replace(cells[place], stride=1 if cells[place].stride == 2 else 2))

    def _longer(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        place = random.randrange(len(cells))
        if len(cells) == self.lengths[1]:
            return cells
        return [*cells[: place + 1], replace(cells[place], stride=1), *cells[place + 1 :]]

    def _shorter(self, cells: list[Cell], random: chance.Random) -> list[Cell]:
        if len(cells) == self.lengths[0] or len(cells) == 1:
            return cells
        place = random.randrange(1, len(cells))
        return cells[:place] + cells[place + 1 :]

    def smallest(self) -> list[list[Cell]]:
        """For each length the member with the narrowest cells and the strides as early as may be."""
        found = []
        for length in range(self.lengths[0], self.lengths[1] + 1):
            first = max(self.space.first_strides) if self.reductions[1] else min(self.space.first_strides)
            after = min(self.reductions[1] - (first - 1), length - 1)
            stem = self.stems[0] if self.stemmed else self.channels[0]
            kernel = STEM_KERNEL if self.stemmed else self.kernels[0]
            rest = [
                Cell(self.channels[0], 2 if place < after else 1, self.kernels[0], self.expansions[0])
                for place in range(length - 1)
            ]
            found.append([Cell(stem, first, kernel), *rest])
        return found

    def student(self, cells: Sequence[Cell]) -> Stacked:
        """The cells as a structure."""
        if isinstance(self.space, PlainSpace):
            layers = tuple(PlainLayer(channels=c.channels, stride=c.stride, kernel=c.kernel) for c in cells)
            return PlainStudent(layers=layers)
        stem = PlainLayer(channels=cells[0].channels, stride=cells[0].stride, kernel=STEM_KERNEL)
        if isinstance(self.space, MobileSpace):
            return MobileStudent(
                stem=stem,
                blocks=tuple(
                    MobileBlock(channels=c.channels, stride=c.stride, expansion=c.expansion, kernel=c.kernel)
                    for c in cells[1:]
                ),
            )
        return ResidualStudent(
            stem=stem, blocks=tuple(ResidualBlock(channels=c.channels, stride=c.stride) for c in cells[1:])
        )


def cells_of(student: Stacked) -> list[Cell]:
    """A structure as cells, the first layer first."""
    if isinstance(student, PlainStudent):
        return [Cell(layer.channels, layer.stride, layer.kernel) for layer in student.layers]
    stem = Cell(student.stem.channels, student.stem.stride)
    if isinstance(student, MobileStudent):
        return [stem, *(Cell(b.channels, b.stride, b.kernel, b.expansion) for b in student.blocks)]
    return [stem, *(Cell(b.channels, b.stride) for b in student.blocks)]


def _changed(cells: list[Cell], place: int, cell: Cell) -> list[Cell]:
    return [*cells[:place], cell, *cells[place + 1 :]]


def nearest(value: N, choices: list[N]) -> N:
    """The choice that is nearest to a value; of two, the smaller."""
    return min(choices, key=lambda choice: (abs(choice - value), choice))


def beside(value: N, choices: list[N], step: int) -> N:
    """The choice that stands so many steps from the nearest one, as far as the (ascending) choices go."""
    place = choices.index(nearest(value, choices)) + step
    return choices[min(max(place, 0), len(choices) - 1)]
