"""What a machine can tell apart: a file against a copy of itself, in the protocol that judges two files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from kdc.numerics.stats import paired_log_ratios, smallest_difference
from targets.latency import BlocksNs
from targets.measured import Comparison
from targets.ratio import Ratio
from targets.runtime import runtime_of


class Noise(BaseModel, frozen=True, extra="forbid"):
    """The noise floor of one regime, with the settings and the time that were given."""

    regime: Literal["hot", "cold"]
    ratio: Ratio = Field(description="of the file to its copy; the truth is 1")
    processes: int
    spread: float = Field(description="standard deviation of the log ratio between processes")
    smallest: float = Field(description="the least true difference, as a share, that is found in 9 of 10 comparisons")


@contextmanager
def twin_of(file: DeviceFile, device: Device) -> Iterator[DeviceFile]:
    """A copy of a file with all its parts, gone at the end: two files on disk, as in any comparison, share no pages."""
    parts = [part.resolve() for part in runtime_of(device).files(file)]
    with scratch_folder("itself") as folder:
        for part in parts:
            copy = folder / part.relative_to(parts[0].parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part, copy)
        yield DeviceFile(folder / parts[0].name, file.runtime)


def noise_of(comparison: Comparison, interest: float) -> tuple[Noise, ...]:
    """What a comparison of a file with itself says of the machine, for each regime that was measured.

    Args: interest: the settings' own.

    Raises: ValueError where there was no baseline.
    """
    if comparison.ratio is None:
        raise ValueError("a file alone tells nothing of what can be told apart")
    means = comparison.candidate.latency.mean_ms is not None
    found = [_noise("hot", comparison.ratio, comparison.samples_ns, interest, means)]
    if comparison.cold is not None and comparison.cold_ratio is not None:
        found.append(_noise("cold", comparison.cold_ratio, comparison.cold.samples_ns, interest, means))
    return tuple(found)


def _noise(
    regime: Literal["hot", "cold"], ratio: Ratio, samples_ns: tuple[BlocksNs, ...], interest: float, means: bool
) -> Noise:
    candidate, baseline = samples_ns
    logs = paired_log_ratios(baseline, candidate, means=means)
    return Noise(
        regime=regime,
        ratio=ratio,
        processes=len(logs),
        spread=float(np.std(logs, ddof=1)),
        smallest=smallest_difference(logs, interest),
    )
