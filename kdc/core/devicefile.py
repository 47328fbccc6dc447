"""What a target's runtime loads: a value of the standard library alone, for the device that measures has no more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DeviceFile:
    """What the target's runtime loads."""

    path: Path
    runtime: str
