"""Times as multiples of a reference's that ran in the same rounds: what slows the machine for a while slows both.

A shared machine's speed changes by a tenth or two from minute to minute. A time in ms says when it was measured as much as
what was; its multiple of a reference network's, measured around it, does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from targets.process import Workplace

COPIES = (
    3  # of the reference in a process: sessions of one file differ by a percent or two through their places in memory
)
BLOCK_SECONDS = 0.05  # of timed blocks for a file
DISTURBED = 0.15  # two measurements of one file that are farther apart are no spread of the same

Rounds = Sequence[Sequence[float]]
"""[files][rounds]: ms, the medians of each file's blocks in one process; every round has one block of each file."""

Timer = Callable[[Sequence[DeviceFile], Device], Rounds]
"""Times files in one fresh process."""


def timed(files: Sequence[DeviceFile], device: Device) -> Rounds:
    """What a machine's own `Timer` is: a fresh, pinned process, and random interleaved blocks (`targets.worker`).

    Raises: TargetError where a file cannot be loaded or run.
    """
    with Workplace(None, device) as place:
        cores = place.watch().quietest(device.threads)
        job = place.job(files, device, (0, 0), cores)
        timings = place.run(replace(job, slice_seconds=BLOCK_SECONDS * len(files))).timings
    return [[median(block) / 1e6 for block in timing.blocks_ns] for timing in timings]


def multiples(rounds: Rounds, copies: int = COPIES) -> list[float]:
    """Each file's time over the reference's, whose copies come first: the median over rounds of the ratio to their mean."""
    logs = np.log(np.asarray(rounds, np.float64))
    found: list[float] = np.exp(np.median(logs[copies:] - logs[:copies].mean(0), axis=1)).tolist()
    return found


def level(rounds: Rounds, copies: int = COPIES) -> float:
    """The reference's own time in this process, ms."""
    return float(np.median(np.asarray(rounds[:copies], np.float64)))


def joined(one: float, other: float) -> float:
    """Two measurements of one file: their mean on the logarithmic scale.

    Where they are too far apart for that, other work disturbed one of them, and the lesser counts: it hastens none.
    """
    apart = abs(math.log(one / other))
    return min(one, other) if apart > DISTURBED else math.sqrt(one * other)
