"""Starting a measuring process and getting its result; none is left behind when kdc is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.spec import DeviceFile
from targets.runtime import Array
from targets.worker import Done, Job

ROOT = Path(__file__).resolve().parent.parent
SHOWN_LINES = 5


class Workplace:
    """A folder for the processes' jobs and results, gone at the end; the samples are written into it once."""

    def __init__(self, samples: Sequence[Array] | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kdc-measure-")
        self.path = Path(self._folder.name)
        self.inputs: Path | None = None
        if samples is not None:
            self.inputs = self.path / "inputs.npz"
            arrays: dict[str, Any] = {str(index): array for index, array in enumerate(samples)}
            np.savez(self.inputs, **arrays)

    def __enter__(self) -> Workplace:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def job(
        self, files: Sequence[DeviceFile], device: Device, seed: tuple[int, ...], cores: tuple[int, ...] | None = None
    ) -> Job:
        """A job on these files with this place's samples. cores: that the process is pinned to; None: not pinned."""
        subjects = tuple(DeviceFile(file.path.resolve(), file.runtime) for file in files)
        return Job(device=device, files=subjects, inputs=self.inputs, seed=seed, cores=cores)

    def run(self, job: Job) -> Done:
        """Do a job in a fresh process.

        Raises: TargetError with what the process said, where it ended without a result or with an error.
        """
        request, result = self.path / "job.json", self.path / "result.json"
        request.write_text(job.model_dump_json())
        result.unlink(missing_ok=True)
        # -P: a folder `targets` of the user's, where kdc was started, must not stand in for this package
        command = [sys.executable, "-P", "-m", "targets.worker", str(request), str(result)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment()
        )
        with process:
            try:
                _, said = process.communicate()
            except BaseException:  # Ctrl-C too
                process.kill()
                raise
        if process.returncode != 0 or not result.exists():
            last = said.decode(errors="replace").strip().splitlines()[-SHOWN_LINES:]
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
            files = ", ".join(str(file.path) for file in job.files)
            raise TargetError(f"the process that measured {files} ended with {how}\n" + "\n".join(last))
        done = Done.model_validate_json(result.read_text())
        if done.error is not None:
            raise TargetError(done.error)
        return done


def _environment() -> dict[str, str]:
    """The environment, with the folder that `targets` lies in where it is no installed package."""
    environment = dict(os.environ)
    if str(ROOT) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(ROOT))))
    return environment
