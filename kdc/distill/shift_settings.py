"""Settings of Delta-KD, whose target needs two models more: teacher and student as they were before. Read without torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from kdc.distill.logit_settings import OnOutputs
from kdc.distill.teacher_settings import TeacherSource


class Shifted(OnOutputs):
    """The student's beginnings, shifted as the teacher was. Source: Delta-KD, Cao et al. 2025, arXiv:2509.14526."""

    function: ClassVar[str] = "kdc.distill.objectives.moving:delta_kd"
    policy: ClassVar[str | None] = "kdc.distill.shift_policy:ShiftedTarget"
    kind: Literal["delta_kd"] = "delta_kd"
    teacher_base: TeacherSource = Field(
        description="the teacher before its fine-tuning, with the same classes: by `build`, `onnx`, `torchscript` or `ask`; "
        "asked on each batch"
    )
    student_base: Literal["start"] | TeacherSource = Field(
        default="start",
        description="start: the student as it is when this training begins; or another, as teacher_base",
    )
    strength: float = Field(default=1.0, ge=0, description="of the shift; 0: the student's beginnings themselves")

    def arguments(self) -> dict[str, Any]:
        """The function's arguments but for the four models' outputs."""
        return {"strength": self.strength}
