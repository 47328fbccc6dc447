"""What a student can look like, and the spaces that such structures are drawn from: plain values, readable without torch."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

Value = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str
"""An argument of the user's own callable."""


class PlainLayer(BaseModel, frozen=True, extra="forbid"):
    """A convolution without bias, a batch norm and a ReLU."""

    channels: int = Field(ge=1)
    stride: Literal[1, 2] = 1
    kernel: int = Field(default=3, ge=1, description="odd; the map keeps its size but for the stride")

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        return _odd("kernel", kernel)


class PlainStudent(BaseModel, frozen=True, extra="forbid"):
    """Layers one after the other, global average pooling and a linear classifier."""

    family: Literal["plain"] = "plain"
    layers: tuple[PlainLayer, ...] = Field(min_length=1)


class ResidualBlock(BaseModel, frozen=True, extra="forbid"):
    """The basic block of He et al. 2015, arXiv:1512.03385, figure 5 left; a 1x1 projection where the shape changes."""

    channels: int = Field(ge=1)
    stride: Literal[1, 2] = 1


class ResidualStudent(BaseModel, frozen=True, extra="forbid"):
    """A stem, basic blocks, global average pooling and a linear classifier."""

    family: Literal["residual"] = "residual"
    stem: PlainLayer
    blocks: tuple[ResidualBlock, ...] = Field(min_length=1)


class MobileBlock(BaseModel, frozen=True, extra="forbid"):
    """An inverted residual (Sandler et al. 2018, arXiv:1801.04381) with ReLU, which costs less than ReLU6.

    Expansion 1 is the depthwise separable block of DS-CNN (Zhang et al. 2017, arXiv:1711.07128), without a skip.
    """

    channels: int = Field(ge=1)
    stride: Literal[1, 2] = 1
    expansion: int = Field(default=1, ge=1, description="inner channels, as a multiple of those that come in")
    kernel: int = Field(default=3, ge=1, description="of the depthwise convolution; odd")

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        return _odd("kernel", kernel)


class MobileStudent(BaseModel, frozen=True, extra="forbid"):
    """A stem, inverted residuals, global average pooling and a linear classifier."""

    family: Literal["mobile"] = "mobile"
    stem: PlainLayer
    blocks: tuple[MobileBlock, ...] = Field(min_length=1)


class ShrunkStudent(BaseModel, frozen=True, extra="forbid"):
    """The incoming model with less of it: first these modules become the identity, then only these channels stay."""

    family: Literal["shrunk"] = "shrunk"
    without: tuple[str, ...] = Field(default=(), description="module paths")
    kept: dict[str, tuple[int, ...]] = Field(
        default={}, description="channels that stay, of every layer that loses some; the decision of `prune`"
    )


class OwnStudent(BaseModel, frozen=True, extra="forbid"):
    """What the user's own callable returns for these arguments."""

    family: Literal["own"] = "own"
    build: str = Field(description="path.py:name or package.module:name")
    arguments: dict[str, Value] = {}


Student = Annotated[
    PlainStudent | ResidualStudent | MobileStudent | ShrunkStudent | OwnStudent, Field(discriminator="family")
]
Stacked = PlainStudent | ResidualStudent | MobileStudent


class _Stack(BaseModel, frozen=True, extra="forbid"):
    """What the three convolutional spaces share: layers or blocks whose channels do not fall along the depth."""

    channels: tuple[int, ...] = Field(
        default=(8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
        description="what a layer or block may give; they do not fall along the depth",
    )
    first_strides: tuple[Literal[1, 2], ...] = Field(default=(1, 2), description="of the first layer")
    reductions: tuple[int, int] = Field(
        default=(1, 4), description="least and most layers that have stride 2; the input's size may allow fewer"
    )

    @field_validator("depth", "blocks", "reductions", mode="before", check_fields=False)
    @classmethod
    def _two_ends(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list | tuple) and len(value) != 2:
            raise ValueError(f"{info.field_name}: expected the least and the most, found {len(value)} values")
        return value

    @field_validator("depth", "blocks", "reductions", check_fields=False)
    @classmethod
    def _in_order(cls, value: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
        least, most = value
        floor = 0 if info.field_name == "reductions" else 1
        if least < floor:
            raise ValueError(f"{info.field_name}: the least, {least}, is below {floor}")
        if least > most:
            raise ValueError(f"{info.field_name}: the least, {least}, is above the most, {most}")
        return value

    @field_validator("channels", "stem", "kernels", "expansions", "first_strides", check_fields=False)
    @classmethod
    def _some_choice(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        name = str(info.field_name)
        if not value:
            raise ValueError(f"{name}: expected at least one choice, found none")
        for choice in value:
            if choice < 1:
                raise ValueError(f"{name}: expected numbers from 1 on, found {choice}")
            if name == "kernels":
                _odd(name, choice)
        return value

    @model_validator(mode="after")
    def _strides_fit(self) -> Self:
        forced, (least, most) = min(self.first_strides) - 1, self.reductions
        if most < forced:
            raise ValueError(f"reductions: the most, {most}, leaves none for first_strides, which are all 2")
        room = self.layers[1] - 1 + max(self.first_strides) - 1
        if least > room:
            raise ValueError(
                f"reductions: the least, {least}, is more than the {room} that {self.layers[1]} layers can have"
            )
        return self

    @property
    @abstractmethod
    def layers(self) -> tuple[int, int]:
        """Least and most layers that may have a stride, the first one counted."""


class PlainSpace(_Stack):
    """Stacks of convolutions."""

    family: Literal["plain"] = "plain"
    depth: tuple[int, int] = Field(default=(2, 8), description="least and most convolutions")
    kernels: tuple[int, ...] = Field(default=(3,), description="what a convolution's kernel may be; odd")

    @property
    def layers(self) -> tuple[int, int]:
        """The convolutions."""
        return self.depth

    def holds(self, student: Student) -> bool:
        """Whether the student is a member."""
        return (
            isinstance(student, PlainStudent)
            and _between(len(student.layers), self.depth)
            and all(layer.kernel in self.kernels for layer in student.layers)
            and _stacked(self, student.layers, [layer.stride for layer in student.layers])
        )


class _Blocks(_Stack):
    """A stem and blocks."""

    stem: tuple[int, ...] = Field(default=(8, 12, 16, 24, 32, 48, 64), description="what the first layer may give")
    blocks: tuple[int, int] = Field(default=(1, 8), description="least and most blocks")

    @property
    def layers(self) -> tuple[int, int]:
        """The stem and the blocks."""
        return 1 + self.blocks[0], 1 + self.blocks[1]

    def _holds(self, student: ResidualStudent | MobileStudent) -> bool:
        return (
            _between(len(student.blocks), self.blocks)
            and student.stem.channels in self.stem
            and student.stem.kernel == STEM_KERNEL
            and _stacked(self, student.blocks, [student.stem.stride, *(block.stride for block in student.blocks)])
        )


class ResidualSpace(_Blocks):
    """A stem and basic blocks."""

    family: Literal["residual"] = "residual"

    def holds(self, student: Student) -> bool:
        """Whether the student is a member."""
        return isinstance(student, ResidualStudent) and self._holds(student)


class MobileSpace(_Blocks):
    """A stem and inverted residuals, among them depthwise separable blocks (expansion 1)."""

    family: Literal["mobile"] = "mobile"
    expansions: tuple[int, ...] = Field(default=(1, 2, 3, 4, 6), description="inner channels as a multiple")
    kernels: tuple[int, ...] = Field(default=(3, 5), description="of the depthwise convolutions; odd")

    def holds(self, student: Student) -> bool:
        """Whether the student is a member."""
        return (
            isinstance(student, MobileStudent)
            and all(block.expansion in self.expansions and block.kernel in self.kernels for block in student.blocks)
            and self._holds(student)
        )


class ShrunkSpace(BaseModel, frozen=True, extra="forbid"):
    """The incoming model with fewer channels and, where it has blocks that keep the shape, fewer blocks."""

    family: Literal["shrunk"] = "shrunk"
    widths: tuple[float, ...] = Field(
        default=(0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
        description="shares of a group's units that may stay; layers that share channels are one group",
    )
    alignment: int | None = Field(
        default=None, ge=1, description="kept channels are a multiple of this; absent: the device's channel_alignment"
    )
    depth: bool = Field(default=True, description="whether blocks may be left out")

    @field_validator("widths")
    @classmethod
    def _are_shares(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if not widths:
            raise ValueError("widths: expected at least one choice, found none")
        for width in widths:
            if not 0 < width <= 1:
                raise ValueError(f"widths: expected shares above 0 and up to 1, found {width}")
        return widths

    def holds(self, student: Student) -> bool:
        """Whether the student can be a member; whether its widths are, only the model can tell."""
        return isinstance(student, ShrunkStudent) and (self.depth or not student.without)


class OwnSpace(BaseModel, frozen=True, extra="forbid"):
    """The user's own callable, given one value of each choice by name."""

    family: Literal["own"] = "own"
    build: str = Field(min_length=1, description="path.py:name or package.module:name; returns an nn.Module")
    choices: dict[str, tuple[Value, ...]] = Field(description="by the callable's argument, the values it may take")

    @field_validator("choices")
    @classmethod
    def _not_empty(cls, choices: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        if not choices:
            raise ValueError("choices: expected at least one argument and its values, found none")
        for name, values in choices.items():
            if not values:
                raise ValueError(f"choices: expected at least one value of {name}, found none")
        return choices

    def holds(self, student: Student) -> bool:
        """Whether the student is a member. A truth value is no number here: True is not 1."""
        return (
            isinstance(student, OwnStudent)
            and student.build == self.build
            and student.arguments.keys() == self.choices.keys()
            and all(
                any(type(value) is type(choice) and value == choice for choice in self.choices[name])
                for name, value in student.arguments.items()
            )
        )


Space = Annotated[PlainSpace | ResidualSpace | MobileSpace | ShrunkSpace | OwnSpace, Field(discriminator="family")]
StackedSpace = PlainSpace | ResidualSpace | MobileSpace

STEM_KERNEL = 3
"""Of the first layer before residual and mobile blocks: what both families' papers have on small images."""
_SHOWN = 12
"""How many widths of a shrunk model are told before the rest is counted."""


def describe(student: Student) -> str:
    """One short line: channels, `/2` for a stride, `x4` for an expansion, `k5` for a kernel other than 3.

    `plain 24/2 48 48/2 96`, `residual 16 | 32/2 32`, `mobile 16/2 | 24x4 32x4k5/2`,
    `shrunk to 24 16 24 32 channels without blocks.1, blocks.3`, `own net.py:build width=16 depth=2`.
    """
    if isinstance(student, PlainStudent):
        return f"plain {' '.join(_layer(layer) for layer in student.layers)}"
    if isinstance(student, ResidualStudent | MobileStudent):
        blocks = " ".join(_layer(block) for block in student.blocks)
        return f"{student.family} {_layer(student.stem)} | {blocks}"
    if isinstance(student, OwnStudent):
        return " ".join(["own", student.build, *(f"{name}={value}" for name, value in student.arguments.items())])
    widths = [str(len(channels)) for channels in student.kept.values()]
    more = f" and {len(widths) - _SHOWN} more layers" if len(widths) > _SHOWN else ""
    narrow = f" to {' '.join(widths[:_SHOWN])} channels{more}" if widths else ""
    left_out = f" without {', '.join(student.without)}" if student.without else ""
    return f"shrunk{narrow}{left_out}"


def key(student: Student) -> str:
    """12 hexadecimal digits that belong to this structure: of the SHA-256 of its JSON, keys sorted."""
    text = json.dumps(student.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _layer(layer: PlainLayer | ResidualBlock | MobileBlock) -> str:
    expansion = f"x{layer.expansion}" if isinstance(layer, MobileBlock) else ""
    kernel = "" if isinstance(layer, ResidualBlock) or layer.kernel == 3 else f"k{layer.kernel}"
    return f"{layer.channels}{expansion}{kernel}{'/2' if layer.stride == 2 else ''}"


def _odd(name: str, kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError(f"{name}: expected odd sizes, found {kernel}")
    return kernel


def _between(value: int, ends: tuple[int, int]) -> bool:
    return ends[0] <= value <= ends[1]


def _stacked(
    space: _Stack, layers: tuple[PlainLayer | ResidualBlock | MobileBlock, ...], strides: list[Literal[1, 2]]
) -> bool:
    channels = [layer.channels for layer in layers]
    return (
        all(count in space.channels for count in channels)
        and channels == sorted(channels)
        and strides[0] in space.first_strides
        and _between(strides.count(2), space.reductions)
    )
