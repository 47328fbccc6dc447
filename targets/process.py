"""A place to measure in: jobs on one set of samples, done here or on a remote device; nothing is left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from kdc.core.scratch import lasting_folder, remove
from targets.job import Done, Job, fields_of
from targets.runtime import Array
from targets.samples import write_samples
from targets.site import Here, Site, Watching


class Workplace:
    """A folder for the processes' jobs and results, gone at the end; the samples are written into it once.

    Args: device: whose `address` says where the jobs are done.
    """

    def __init__(self, samples: Sequence[Array] | None, device: Device) -> None:
        self.path = lasting_folder("measure")
        self.inputs = write_samples(samples, self.path)
        try:
            self._site = _site(device, self.path)
        except BaseException:
            remove(self.path)
            raise

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._site.close()
        finally:
            remove(self.path)

    def watch(self) -> Watching:
        """Begin to watch the machine that the jobs are done on."""
        return self._site.watch()

    def job(
        self, files: Sequence[DeviceFile], device: Device, seed: tuple[int, ...], cores: tuple[int, ...] | None = None
    ) -> Job:
        """A job on these files with this place's samples. cores: that the process is pinned to; None: not pinned."""
        subjects = tuple(DeviceFile(file.path.resolve(), file.runtime) for file in files)
        return Job(device=fields_of(device), files=subjects, inputs=self.inputs, seed=seed, cores=cores)

    def run(self, job: Job) -> Done:
        """Do a job in a fresh process.

        Raises: TargetError with what the process said, where it ended without a result or with an error.
        """
        return self._site.run(job)

    def run_all(self, jobs: Sequence[Job]) -> list[Done]:
        """Do jobs that time nothing, each in a fresh process: at once on this machine's cores, in turn on a device.

        Raises: TargetError as `run`.
        """
        return self._site.run_all(jobs)


def _site(device: Device, folder: Path) -> Site:
    if device.address is None:
        return Here(device, folder)
    from targets.remote.site import Remote  # where there is a device only: its agent's part is for POSIX systems

    return Remote(device)
