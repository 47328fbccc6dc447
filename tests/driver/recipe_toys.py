"""Toy passes, and recipes that are read or refused with them."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, Field

from kdc.core.contract import Contract, Decision, Pass
from kdc.core.errors import RecipeError
from kdc.driver.recipe import Recipe, load_recipe


class Schedule(BaseModel, frozen=True, extra="forbid"):
    epochs: int = Field(default=3, gt=0, description="over the training split")


class Trim(Pass[Decision]):
    """A toy."""

    kind: ClassVar[str] = "trim"
    decision_type: ClassVar[type[Decision]] = Decision
    keep_macs: float = Field(default=0.5, gt=0, le=1)
    importance: Literal["magnitude", "taylor"] = "taylor"
    sizes: tuple[int, ...] = (1, 2)
    bits: int | Literal["auto"] = "auto"
    exact: bool = False
    schedule: Schedule = Schedule()

    def contract(self, device: Any) -> Contract:
        return Contract(frozenset())

    def decide(self, artifact: Any, context: Any) -> Decision:
        return Decision()

    def apply(self, artifact: Any, decision: Decision) -> Any:
        return artifact


class Polish(Trim):
    """Another."""

    kind: ClassVar[str] = "polish"


KNOWN: dict[str, type[Pass[Any]]] = {"trim": Trim, "polish": Polish}
GOOD = "teacher: {build: my.py:build}\ndata: my.py:load\n"


def load(folder: Path, text: str, flags: dict[str, Any] | None = None, settings: tuple[str, ...] = ()) -> Recipe:
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", flags or {}, settings, KNOWN)


def refused(folder: Path, text: str, flags: dict[str, Any] | None = None, settings: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, flags, settings)
    message = str(caught.value)
    assert "→" in message  # what to do
    return message.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")


def told(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
