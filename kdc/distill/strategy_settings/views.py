"""Settings of what is done to a whole view of the training split, so that the teacher's stored outputs are of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field


class ViewTransform(BaseModel, frozen=True, extra="forbid"):
    """A change of a whole view: a function of the samples and a named generator alone."""

    transform: ClassVar[str]
    """module:function, imported when a training begins: (view, settings, generator) -> view."""
    mixes: ClassVar[bool] = False
    """It gives a sample a share of another's label; a training has room for one such."""
    kind: str


class Mixup(ViewTransform):
    """Mix pairs of samples and their labels; student and teacher see the mixture. Source: arXiv:1710.09412."""

    transform: ClassVar[str] = "kdc.distill.strategies.mixing:mixup"
    mixes: ClassVar[bool] = True
    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(
        default=1.0, gt=0, description="of Beta(alpha, alpha), from which shares are drawn; 1: uniform"
    )
    portion: float = Field(default=1.0, gt=0, le=1, description="of the samples that are mixed; below 1: partial mixup")


class CutMix(ViewTransform):
    """Paste a box of another image, and mix the labels by its area; for both models. Source: arXiv:1905.04899."""

    transform: ClassVar[str] = "kdc.distill.strategies.mixing:cutmix"
    mixes: ClassVar[bool] = True
    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(default=1.0, gt=0, description="of Beta(alpha, alpha), from which the areas are drawn")


class Crops(ViewTransform):
    """A box of each image, drawn by chance and enlarged to the image's size; for both models."""

    transform: ClassVar[str] = "kdc.distill.strategies.regions:crops"
    kind: Literal["crops"] = "crops"
    smallest: float = Field(default=0.25, gt=0, le=1, description="area of the smallest box, in shares of the image's")
    stretch: float = Field(default=4 / 3, ge=1, description="largest ratio of the box's sides to the image's")
    flip: float = Field(default=0.0, ge=0, le=1, description="chance that left and right are exchanged")


class SelfMix(ViewTransform):
    """Cover a box of each image with another of the same image: no label changes. Source: FerKD, arXiv:2312.17473."""

    transform: ClassVar[str] = "kdc.distill.strategies.regions:self_mix"
    kind: Literal["self-mix"] = "self-mix"
    alpha: float = Field(default=1.0, gt=0, description="of Beta(alpha, alpha), from which the areas are drawn")


AnyTransform = Annotated[Mixup | CutMix | Crops | SelfMix, Field(discriminator="kind")]
