"""How long one run of a file takes: what the samples of all processes say of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field

from kdc.numerics.stats import log_means, median_interval, percentile, ratio_interval
from targets.job import FileTiming

BlocksNs = tuple[tuple[tuple[int, ...], ...], ...]
"""[processes][rounds][runs], nanoseconds."""


class Latency(BaseModel, frozen=True, extra="forbid"):
    """How long one run takes. The interval is of the median; p90, p99 and p99.9 only where the samples support them.

    The means are of files whose work depends on their input, None for others: over the inputs, each by the median of its
    runs in a block, then the geometric mean over processes with its t interval.
    """

    n: int = Field(description="timed runs")
    processes: int
    median_ms: float
    low_ms: float
    high_ms: float
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None = None
    mean_ms: float | None = None
    mean_low_ms: float | None = None
    mean_high_ms: float | None = None
    load_ms: float = Field(description="making the session, the runtime being there; median over processes")
    first_ms: float = Field(description="the first run of a new session; median over processes")
    emulated: bool = Field(default=False, description="no time of the device's own processor: it satisfies no budget")

    def figure(self) -> tuple[float, float, float]:
        """What stands for the file, and its interval, ms: the mean where its work depends on its input, or the median."""
        if self.mean_ms is None or self.mean_low_ms is None or self.mean_high_ms is None:
            return self.median_ms, self.low_ms, self.high_ms
        return self.mean_ms, self.mean_low_ms, self.mean_high_ms


def latency_of(timings: Sequence[FileTiming], generator: np.random.Generator, mixed: bool) -> Latency:
    """One file's, of all processes. generator: for the median's interval. mixed: whether its work depends on its input."""
    clusters = [timing.blocks_ns for timing in timings]
    samples = np.array([ns for process in clusters for block in process for ns in block]) / 1e6
    median = median_interval(clusters, generator)
    mean = ratio_interval(log_means(clusters)) if mixed else None
    return Latency(
        n=samples.size,
        processes=len(timings),
        median_ms=median.value / 1e6,
        low_ms=median.low / 1e6,
        high_ms=median.high / 1e6,
        p90_ms=percentile(samples, 0.9),
        p99_ms=percentile(samples, 0.99),
        p999_ms=percentile(samples, 0.999),
        mean_ms=mean and mean.value / 1e6,
        mean_low_ms=mean and mean.low / 1e6,
        mean_high_ms=mean and mean.high / 1e6,
        load_ms=float(np.median([timing.load_ns for timing in timings])) / 1e6,
        first_ms=float(np.median([timing.first_ns for timing in timings])) / 1e6,
    )
