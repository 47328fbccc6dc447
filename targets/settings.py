"""How long to measure, and what to look for."""

from __future__ import annotations

from pydantic import BaseModel, Field

INTEREST = 0.01  # a difference of at most this fraction is none
PROCESSES_LEAST = 3  # with fewer, a t interval is too wide to say anything


class Settings(BaseModel, frozen=True, extra="forbid"):
    """How long to measure, and what to look for."""

    seconds: float = Field(default=20, gt=0, description="no new process starts after this, but for the first three")
    precision: float = Field(default=0.01, gt=0, description="enough when a 95% interval's half-width is this share")
    interest: float = Field(default=INTEREST, ge=0, description="a difference of at most this share is none")
    processes_min: int = Field(default=5, ge=PROCESSES_LEAST, description="fresh processes, time permitting")
    processes_max: int = Field(default=60, ge=PROCESSES_LEAST)
    slice_seconds: float = Field(default=0.25, gt=0, description="of timed rounds for each file in each process")
    rounds_max: int = Field(default=20, ge=3, description="in each process")
    cold_seconds: float = Field(
        default=0, ge=0, description="the same for cold runs, beside `seconds`; 0: cold runs are not measured"
    )
    timeout_seconds: float = Field(
        default=300,
        gt=0,
        description="a measuring process is killed that takes longer; beside what its rounds may take",
    )
