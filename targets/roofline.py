"""What holds a node back: the arithmetic, the memory, or neither, so that overhead does.

Source: Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009. A node that does `2 * macs` operations on `bytes`
bytes takes at least the longer of `2 * macs / flops_per_s` and `bytes / bytes_per_s`. The longer one is what bounds it,
unless it takes more than `OVERHEAD` times as long: then neither peak explains its time, and what is left is overhead
(dispatch, a kernel that uses the machine badly, work that is no multiply-accumulate).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from kdc.core.errors import TargetError

OVERHEAD = 5.0
"""A kernel that reaches a fifth of the peak is a fair one on a CPU; below that its time is not the roof's."""

Bound = Literal["compute", "memory", "overhead"]


class Peaks(BaseModel, frozen=True, extra="forbid"):
    """What a machine can do at most, with the threads that are measured with; a multiply-accumulate is two operations."""

    flops_per_s: float = Field(gt=0)
    bytes_per_s: float = Field(gt=0)
    int8_ops_per_s: float | None = Field(default=None, gt=0, description="None: as flops_per_s")


def bound(macs: float, moved_bytes: float, seconds: float, peaks: Peaks, *, int8: bool = False) -> Bound:
    """What bounds a node that took this long."""
    rate = peaks.int8_ops_per_s if int8 and peaks.int8_ops_per_s is not None else peaks.flops_per_s
    compute, memory = 2 * macs / rate, moved_bytes / peaks.bytes_per_s
    if seconds > OVERHEAD * max(compute, memory):
        return "overhead"
    return "compute" if compute >= memory else "memory"


def parse_peaks(text: str) -> Peaks:
    """Peaks from `FLOPS,BYTES` or `FLOPS,BYTES,INT8`, each a second, as in `60e9,12e9`.

    Raises: TargetError where the text is none.
    """
    try:
        flops, memory, *rest = map(float, text.split(","))
        return Peaks(flops_per_s=flops, bytes_per_s=memory, int8_ops_per_s=rest[0] if len(rest) == 1 else None)
    except ValueError as error:
        raise TargetError(
            f"--peaks {text}: is no pair of numbers above 0",
            do="write operations and bytes a second: `--peaks 60e9,12e9`",
        ) from error
