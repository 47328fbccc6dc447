"""The seam to where a measurement is made: on this machine, or on a device that is reached over a line.

What measures (`targets.measure`, `targets.over_inputs`) asks a site for three things: to do jobs in fresh processes, to
watch its machine meanwhile, and to say what that machine is. `targets.process.Workplace` chooses it by the device's
address.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from targets.fresh import Started, own_environment, run_fresh
from targets.job import Done, Job
from targets.machine import Watch
from targets.proc import allowed_cores
from targets.runtime import runtime_of

if TYPE_CHECKING:
    from kdc.core.device import Device


class Watching(Protocol):
    """A machine, from before a measurement to its end."""

    def quietest(self, count: int) -> tuple[int, ...] | None:
        """The `count` cores that do least now; None where a process cannot be pinned."""

    def environment(self) -> dict[str, Any]:
        """What the figures hold for; `emulated` is there, and true, where they are no measure of that processor."""

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""


class Site(Protocol):
    """Where jobs are done."""

    def watch(self) -> Watching:
        """Begin to watch the machine."""

    def run(self, job: Job) -> Done:
        """Do a job in a fresh process. Raises: TargetError where it ended without a result."""

    def run_all(self, jobs: Sequence[Job]) -> list[Done]:
        """Do jobs that time nothing, each in a fresh process, several at once where the machine can."""

    def close(self) -> None:
        """Leave nothing behind."""


class Here:
    """This machine."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device, self._folder = device, folder

    def watch(self) -> Watching:
        """Begin to watch this machine."""
        return watch(self._device)

    def run(self, job: Job) -> Done:
        """Do a job in a fresh process of this Python."""
        return self._run(job, self._folder)

    def run_all(self, jobs: Sequence[Job]) -> list[Done]:
        """Do jobs as many at once as there are cores."""
        processes: list[subprocess.Popen[bytes]] = []
        with ThreadPoolExecutor(allowed_cores()) as pool:
            running = [
                pool.submit(self._run, job, self._folder / str(i), processes.append) for i, job in enumerate(jobs)
            ]
            try:
                return [future.result() for future in running]
            except BaseException:  # Ctrl-C too: a job may hang
                pool.shutdown(wait=False, cancel_futures=True)
                for process in processes:
                    process.kill()
                raise

    def _run(self, job: Job, folder: Path, started: Started = lambda process: None) -> Done:
        folder.mkdir(exist_ok=True)
        # -P: a folder `targets` of the user's, where kdc was started, must not stand in for this package
        return run_fresh(job, folder, [sys.executable, "-P", "-m", "targets.worker"], own_environment(), started)

    def close(self) -> None:
        """Nothing outlives its job."""


def watch(device: Device) -> Watch:
    """Begin to watch the machine that this process is on, for what is measured with a device's runtime.

    Raises: TargetError where the runtime is not installed.
    """
    versions = {device.runtime: runtime_of(device).version(), "numpy": np.__version__}
    return Watch(device.threads, versions, emulated=device.emulated)
