"""What was measured: files with their costs, their samples, and which of two is the faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from targets.latency import BlocksNs, Latency
from targets.placement import Placement
from targets.ratio import Ratio, judge


class Profile(BaseModel, frozen=True, extra="forbid"):
    """One file: what it is and what it costs.

    1 MB is 10^6 bytes. `peak_memory_mb` is over what the bare runtime takes; `macs` are of one sample.
    """

    path: Path
    sha256: str
    size_mb: float
    latency: Latency
    cold: Latency | None = Field(default=None, description="of runs that each found the caches swept, where measured")
    peak_memory_mb: float
    mapped_mb: float | None = Field(
        default=None,
        description="of the file's own pages in the address space, where the runtime maps it; None: untold",
    )
    parameters: int | None = Field(description="None where the graph is unknown: a file of the runtime's own format")
    macs: int | None
    placement: Placement | None = Field(default=None, description="where the target has providers beside its CPU")


class Cold(BaseModel, frozen=True, extra="forbid"):
    """The cold runs of files that were timed in the same rounds; samples_ns has the files in their measurement's order."""

    reached: Literal["precision", "time"]
    processes: int
    swept_mb: float = Field(description="read and written before every run, for each core")
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False)


class Comparison(BaseModel, frozen=True, extra="forbid"):
    """A candidate, beside a baseline where one was given; samples_ns is [file][process][round][run]."""

    candidate: Profile
    baseline: Profile | None
    ratio: Ratio | None
    reached: Literal["precision", "time"]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False, description="the candidate, then the baseline")
    cold_ratio: Ratio | None = None
    cold: Cold | None = Field(default=None, description="the candidate, then the baseline")


class Measured(BaseModel, frozen=True, extra="forbid"):
    """A baseline and candidates that were timed in the same rounds; samples_ns has the baseline first.

    skips: for each file, the baseline first, whether its work depends on its input, so that its mean over the inputs is
    what is compared; empty where none's does.
    """

    baseline: Profile
    candidates: tuple[Profile, ...]
    interest: float
    reached: Literal["precision", "time"]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    samples_ns: tuple[BlocksNs, ...] = Field(repr=False)
    skips: tuple[bool, ...] = ()
    cold: Cold | None = None

    def ratio(self, index: int) -> Ratio:
        """The baseline over a candidate: above 1 the candidate is faster."""
        return self._judge(0, 1 + index)

    def ratio_between(self, reference: int, candidate: int) -> Ratio:
        """One candidate over another: above 1 the second is faster."""
        return self._judge(1 + reference, 1 + candidate)

    def cold_ratio(self, index: int) -> Ratio | None:
        """The baseline over a candidate, both cold; None where cold runs were not measured."""
        return None if self.cold is None else self._judge(0, 1 + index, self.cold.samples_ns)

    def _judge(self, first: int, second: int, samples_ns: tuple[BlocksNs, ...] | None = None) -> Ratio:
        means = bool(self.skips) and (self.skips[first] or self.skips[second])
        samples = self.samples_ns if samples_ns is None else samples_ns
        return judge(samples[first], samples[second], self.interest, means)

    def comparison(self, index: int) -> Comparison:
        """A candidate beside the baseline."""
        return Comparison(
            candidate=self.candidates[index],
            baseline=self.baseline,
            ratio=self.ratio(index),
            reached=self.reached,
            environment=self.environment,
            notes=self.notes,
            samples_ns=(self.samples_ns[1 + index], self.samples_ns[0]),
            cold_ratio=self.cold_ratio(index),
            cold=self.cold
            and self.cold.model_copy(update={"samples_ns": (self.cold.samples_ns[1 + index], self.cold.samples_ns[0])}),
        )
