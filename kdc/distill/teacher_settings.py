"""Where a teacher comes from: code and weights, a file that can only be asked, or a function that asks another machine.

Settings that are read without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

KINDS = ("build", "onnx", "torchscript", "ask")


class BuiltSource(BaseModel, frozen=True, extra="forbid"):
    """A teacher of PyTorch code."""

    build: str = Field(
        description="path/to/file.py:callable or package.module:callable, which returns a torch.nn.Module"
    )
    weights: Path | None = Field(default=None, description="a .safetensors file, or .pt/.pth with plain tensors")
    arguments: dict[str, Any] = Field(default={}, description="keyword arguments of the callable")
    apart: bool = Field(
        default=False,
        description="too large to fit beside the student: it is in memory only while its answers are computed",
    )


class OnnxSource(BaseModel, frozen=True, extra="forbid"):
    """A teacher in an ONNX file; its first output counts."""

    onnx: Path


class TorchScriptSource(BaseModel, frozen=True, extra="forbid"):
    """A teacher in a TorchScript file (`torch.jit.save`)."""

    torchscript: Path


class AskedSource(BaseModel, frozen=True, extra="forbid"):
    """A teacher that a function of the user's asks, somewhere else, and that may be asked so many times alone."""

    ask: str = Field(description="path/to/file.py:callable: an array for each input, [n, ...] -> an array of answers")
    queries: int = Field(ge=1, description="samples that it may ever be asked, failed tries included")
    gives: Literal["logits", "probabilities", "classes"] = Field(
        default="logits", description="[n, classes], [n, classes], or class numbers [n]"
    )
    classes: int | None = Field(default=None, ge=2, description="how many there are, where it gives class numbers")
    batch: int = Field(default=100, ge=1, description="samples of one call")
    tries: int = Field(default=5, ge=1, description="of one call, with growing pauses between")

    @model_validator(mode="after")
    def _class_numbers_have_a_bound(self) -> Self:
        if (self.gives == "classes") != (self.classes is not None):
            raise ValueError("`classes` belongs to `gives: classes`, and only there: how many classes are there?")
        return self


def _kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else [kind for kind in KINDS if hasattr(value, kind)]
    return next((kind for kind in KINDS if kind in keys), None)


TeacherSource = Annotated[
    Annotated[BuiltSource, Tag("build")]
    | Annotated[OnnxSource, Tag("onnx")]
    | Annotated[TorchScriptSource, Tag("torchscript")]
    | Annotated[AskedSource, Tag("ask")],
    Discriminator(
        _kind,
        custom_error_type="teacher_source",
        custom_error_message="a teacher is named by one of `build`, `onnx`, `torchscript` or `ask`",
    ),
]
