"""How a teacher's answers are kept: settings that are read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

DENSE_CLASSES = 4096
"""Up to this many classes `auto` keeps every value; a row is then 16 kB at most."""


class AnswerForm(BaseModel, frozen=True, extra="forbid"):
    """What is kept of the teacher's outputs for a sample."""

    kind: Literal["auto", "exact", "half", "sparse"] = Field(
        default="auto",
        description=f"exact: every value in float32; half: in float16; sparse: the largest, and a sample of the rest; "
        f"auto: exact up to {DENSE_CLASSES} classes, sparse above",
    )
    top: int = Field(default=32, ge=1, description="of a sparse row: classes whose logits are kept to the bit")
    samples: int = Field(default=32, ge=1, description="of a sparse row: draws from the other classes")
    power: float = Field(
        default=1.0, ge=0, le=2, description="of a sparse row: draws are in proportion to probability^power"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="of a sparse row: of the probabilities that are drawn from"
    )

    def possible(self) -> tuple[AnswerForm, ...]:
        """The forms that `of` may give, for a file that is looked for before the outputs' shape is known."""
        exact = AnswerForm(kind="exact")
        sparse = self.model_copy(update={"kind": "sparse"})
        return {"auto": (exact, sparse), "sparse": (sparse, exact)}.get(self.kind, (AnswerForm(kind=self.kind),))

    def of(self, shape: tuple[int, ...]) -> AnswerForm:
        """The form for outputs of this shape, [...], classes last: never `auto`, never more classes than there are."""
        classes = shape[-1] if shape else 1
        kind = self.kind
        if kind == "auto":
            kind = "exact" if classes <= DENSE_CLASSES else "sparse"
        if kind == "sparse" and classes <= self.top:
            kind = "exact"
        if kind != "sparse":
            return AnswerForm(kind=kind)
        return self.model_copy(update={"kind": kind})
