"""The members of the spaces: drawn, mutated, crossed, built and counted. The one place that knows every family."""

from __future__ import annotations

import random as chance
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import inf, log2
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from kdc.core.artifact import Artifact, example
from kdc.core.contract import named_seed
from kdc.core.errors import ModelError
from kdc.core.trace import TRACE_BATCH
from kdc.core.usercode import call, load_callable
from passes.search import families
from passes.search.shrink import Shrinker, count, shrink
from passes.search.spaces import (
    STEM_KERNEL,
    MobileBlock,
    MobileSpace,
    MobileStudent,
    OwnSpace,
    OwnStudent,
    PlainLayer,
    PlainSpace,
    PlainStudent,
    ResidualBlock,
    ResidualStudent,
    ShrunkSpace,
    ShrunkStudent,
    Space,
    Stacked,
    StackedSpace,
    Student,
    Value,
    key,
)

if TYPE_CHECKING:
    from kdc.core.spec import TensorSpec

TRIES = 8
"""How often a mutation is drawn anew where it changed nothing; a space may have a single member."""

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Image:
    """What a convolutional family takes and gives."""

    channels: int
    height: int
    width: int
    classes: int

    @property
    def reductions(self) -> int:
        """How often the map may be halved before it falls below one pixel."""
        return int(log2(min(self.height, self.width)))

    @staticmethod
    def of(artifact: Artifact[nn.Module], family: str) -> Image:
        """Raises: ModelError where the model takes or gives anything else."""
        inputs, outputs = artifact.inputs, artifact.outputs
        sizes = inputs[0].shape[1:] if inputs else ()
        fits = len(inputs) == 1 and inputs[0].dtype.startswith("float") and len(sizes) == 3
        whole = [size for size in sizes if isinstance(size, int)]
        classes = outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else None
        if not fits or len(whole) != 3 or not isinstance(classes, int):
            raise ModelError(
                f"search.spaces: {family}: the model takes {_told(inputs)} and gives {_told(outputs)}; expected one "
                "floating image [batch, channels, height, width] in and [batch, classes] out",
                do="take it out of search.spaces, or use shrunk or own",
            )
        return Image(whole[0], whole[1], whole[2], classes)


def _told(specs: Sequence[TensorSpec]) -> str:
    return " and ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs) or "nothing"


def build(student: Student, artifact: Artifact[nn.Module], seed: int, shrinker: Shrinker | None = None) -> nn.Module:
    """The network of a structure, in evaluation mode: the same weights for the same structure and seed.

    torch's global generator is left as it was.

    Args: artifact: the incoming model; its ends are the student's too.
        shrinker: of this artifact, where many are built; without it a shrunk model is compared with its own trace.
    Raises: ModelError where the structure does not fit the incoming model, or the user's callable fails, returns no
        nn.Module, or one that does not run on the inputs or gives outputs of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, key(student)))
        if isinstance(student, ShrunkStudent):
            model = shrink(artifact, student) if shrinker is None else shrinker.build(student)
        elif isinstance(student, OwnStudent):
            model = _own(student, artifact)
        else:
            image = Image.of(artifact, student.family)
            ends = image.channels, image.classes
            if isinstance(student, PlainStudent):
                model = families.plain(student, *ends)
            elif isinstance(student, ResidualStudent):
                model = families.residual(student, *ends)
            else:
                model = families.mobile(student, *ends)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model.eval()


def _own(student: OwnStudent, artifact: Artifact[nn.Module]) -> nn.Module:
    what = f"search {student.build}"
    function = load_callable(student.build, Path.cwd(), "search", ModelError)
    model = call(function, student.arguments, what, ModelError)
    given = ", ".join(f"{name}={value!r}" for name, value in student.arguments.items())
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{what}({given}) returned a {type(model).__name__}; expected a torch.nn.Module", do="return the network"
        )
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(*(example(spec, TRACE_BATCH) for spec in artifact.inputs))
    except Exception as error:  # whatever a user's forward raises
        raise ModelError(
            f"{what}({given}): the network fails on {_told(artifact.inputs)}: {type(error).__name__}: {error}",
            do="make it take what the teacher takes, for every value of the choices",
        ) from error
    found = [tuple(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    expected = [tuple(example(spec, TRACE_BATCH).shape) for spec in artifact.outputs]
    if found != expected:
        raise ModelError(
            f"{what}({given}): the network's outputs have shapes {found} for a batch of {TRACE_BATCH}; expected "
            f"{expected}, as the incoming model's",
            do="make it give what the teacher gives, for every value of the choices",
        )
    return model


@dataclass(frozen=True)
class _Cell:
    """A layer or block of any of the stacked families; what a family lacks stays as it is here."""

    channels: int
    stride: Literal[1, 2] = 1
    kernel: int = STEM_KERNEL
    expansion: int = 1


@dataclass(frozen=True)
class _Stacks:
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

    def draw(self, random: chance.Random) -> list[_Cell]:
        """A member. The narrowest and the widest layer are drawn first, so that small and large ones come often."""
        length = random.randint(*self.lengths)
        top = random.randrange(len(self.channels))
        bottom = random.randint(0, top)
        cells = [
            _Cell(
                self.channels[random.randint(bottom, top)],
                1,
                random.choice(self.kernels),
                random.choice(self.expansions),
            )
            for _ in range(length)
        ]
        if self.stemmed:
            fitting = [width for width in self.stems if width <= self.channels[top]] or self.stems[:1]
            cells[0] = _Cell(random.choice(fitting))
        places = random.sample(range(length), min(length, random.randint(*self.reductions)))
        cells = [replace(cell, stride=2 if place in places else 1) for place, cell in enumerate(cells)]
        return self.mended(cells, random)

    def mutate(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        """A member that differs in one or two respects: a width, all widths, a kernel, an expansion, a stride, depth."""
        for _ in range(random.randint(1, 2)):
            edits = [self._width, self._scale, self._cell, self._stride, self._longer, self._shorter]
            cells = self.mended(random.choice(edits)(cells, random), random)
        return cells

    def mended(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
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
                channels=_nearest(cell.channels, self.channels),
                kernel=_nearest(cell.kernel, self.kernels),
                expansion=_nearest(cell.expansion, self.expansions),
            )
            if place or not self.stemmed
            else _Cell(_nearest(cell.channels, self.stems), cell.stride)
            for place, cell in enumerate(cells)
        ]
        body = 1 if self.stemmed else 0
        widths = sorted(cell.channels for cell in cells[body:])
        cells[body:] = [replace(cell, channels=width) for cell, width in zip(cells[body:], widths, strict=True)]
        return self._strided(cells, random)

    def _strided(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
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

    def _width(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        place = random.randrange(len(cells))
        choices = self.stems if place == 0 else self.channels
        return _changed(cells, place, replace(cells[place], channels=random.choice(choices)))

    def _scale(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        step = random.choice((-1, 1))
        return [
            replace(cell, channels=_beside(cell.channels, self.channels if place else self.stems, step))
            for place, cell in enumerate(cells)
        ]

    def _cell(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        place = random.randrange(len(cells))
        kernel, expansion = random.choice(self.kernels), random.choice(self.expansions)
        return _changed(cells, place, replace(cells[place], kernel=kernel, expansion=expansion))

    def _stride(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        place = random.randrange(len(cells))
        return _changed(cells, place, replace(cells[place], stride=1 if cells[place].stride == 2 else 2))

    def _longer(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        place = random.randrange(len(cells))
        if len(cells) == self.lengths[1]:
            return cells
        return [*cells[: place + 1], replace(cells[place], stride=1), *cells[place + 1 :]]

    def _shorter(self, cells: list[_Cell], random: chance.Random) -> list[_Cell]:
        if len(cells) == self.lengths[0] or len(cells) == 1:
            return cells
        place = random.randrange(1, len(cells))
        return cells[:place] + cells[place + 1 :]

    def smallest(self) -> list[list[_Cell]]:
        """For each length the member with the narrowest cells and the strides as early as may be."""
        found = []
        for length in range(self.lengths[0], self.lengths[1] + 1):
            first = max(self.space.first_strides) if self.reductions[1] else min(self.space.first_strides)
            after = min(self.reductions[1] - (first - 1), length - 1)
            stem = self.stems[0] if self.stemmed else self.channels[0]
            kernel = STEM_KERNEL if self.stemmed else self.kernels[0]
            rest = [
                _Cell(self.channels[0], 2 if place < after else 1, self.kernels[0], self.expansions[0])
                for place in range(length - 1)
            ]
            found.append([_Cell(stem, first, kernel), *rest])
        return found

    def student(self, cells: Sequence[_Cell]) -> Stacked:
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


def _cells(student: Stacked) -> list[_Cell]:
    if isinstance(student, PlainStudent):
        return [_Cell(layer.channels, layer.stride, layer.kernel) for layer in student.layers]
    stem = _Cell(student.stem.channels, student.stem.stride)
    if isinstance(student, MobileStudent):
        return [stem, *(_Cell(b.channels, b.stride, b.kernel, b.expansion) for b in student.blocks)]
    return [stem, *(_Cell(b.channels, b.stride) for b in student.blocks)]


def _changed(cells: list[_Cell], place: int, cell: _Cell) -> list[_Cell]:
    return [*cells[:place], cell, *cells[place + 1 :]]


def _nearest(value: N, choices: list[N]) -> N:
    return min(choices, key=lambda choice: (abs(choice - value), choice))


def _beside(value: N, choices: list[N], step: int) -> N:
    place = choices.index(_nearest(value, choices)) + step
    return choices[min(max(place, 0), len(choices) - 1)]


@dataclass(frozen=True)
class _Shrinks:
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
        shares = {g.name: _beside(centre, self.widths, random.randint(-1, 1)) for g in self.shrinker.groups(without)}
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
            shares = {name: _beside(share, self.widths, step) for name, share in shares.items()}
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
        least, most = _Stacks(space, image).reductions
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
        counter = FlopCounterMode(display=False)
        try:
            with torch.no_grad(), counter:
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
        return stacks.student(stacks.mutate(stacks.mended(_cells(student), random), random))

    def _crossed(self, space: Space, a: Student, b: Student, random: chance.Random) -> Student:
        if isinstance(space, ShrunkSpace) and isinstance(a, ShrunkStudent) and isinstance(b, ShrunkStudent):
            return self._shrinks(space).cross(a, b, random)
        if isinstance(space, OwnSpace) and isinstance(a, OwnStudent) and isinstance(b, OwnStudent):
            return _Owns(space).cross(a, b, random)
        assert not isinstance(space, ShrunkSpace | OwnSpace)
        assert not isinstance(a, ShrunkStudent | OwnStudent)
        assert not isinstance(b, ShrunkStudent | OwnStudent)
        stacks, first, second = self._stacks(space), _cells(a), _cells(b)
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

    def _stacks(self, space: StackedSpace) -> _Stacks:
        return _Stacks(space, Image.of(self.artifact, space.family))

    def _shrinks(self, space: ShrunkSpace) -> _Shrinks:
        return _Shrinks(space, self._shrinker)
