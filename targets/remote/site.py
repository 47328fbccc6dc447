"""A device as a place to measure in: files are copied once, jobs are done by its agent, its paths become ours again."""

from __future__ import annotations

import getpass
import shlex
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets.emulation import elf_architecture
from targets.job import Done, Job, fields_of
from targets.remote import adb, ssh
from targets.remote.address import parse
from targets.remote.bundle import LEAST_PYTHON, bundle
from targets.remote.line import ANSWER_SECONDS, SILENCE_SECONDS
from targets.runtime import runtime_of
from targets.site import Watching

if TYPE_CHECKING:
    from kdc.core.device import Device

WAIT_SECONDS = 10.0  # for another user to leave the device
GRACE_SECONDS = 60.0  # beyond a job's own limit, which the agent holds


class Remote:
    """A device behind an address, from the start of its agent to its end.

    Raises: TargetError where it cannot be reached, lacks Python, numpy or the runtime, or is in use.
    """

    def __init__(self, device: Device) -> None:
        assert device.address is not None
        self._address = parse(device.address)
        emulated = device.emulated or self._address.emulated
        self._there = fields_of(device.model_copy(update={"address": None, "emulated": emulated}))
        self._runtime = runtime_of(device)
        connect = ssh.connect if self._address.scheme == "ssh" else adb.connect
        self._line = connect(self._address, bundle(type(self._runtime).__module__))
        self._names: dict[tuple[Path, int, int], str] = {}
        self._folders: dict[Path, str] = {}
        self._folder = ""
        try:
            self._folder = self._greeted()
            self.facts = self._hello()
        except BaseException:
            self._line.close()
            raise

    def watch(self) -> Watching:
        """Begin to watch the device."""
        return _Watch(self, self._ask("watch", device=self._there))

    def run(self, job: Job) -> Done:
        """Do a job in a fresh process on the device.

        Raises: TargetError where it ended without a result, the device is gone, or a file is of another architecture.
        """
        files = tuple(DeviceFile(Path(self._copied(file)), file.runtime) for file in job.files)
        inputs = None if job.inputs is None else Path(self._put(job.inputs, "inputs.npz"))
        there = replace(job, files=files, inputs=inputs, device={**job.device, "address": None})
        return Done.from_json(self._ask("job", job.limit_seconds + GRACE_SECONDS, job=there.as_json()))

    def run_all(self, jobs: Sequence[Job]) -> list[Done]:
        """Do jobs one after another: there is one line, and one job on it."""
        return [self.run(job) for job in jobs]

    def close(self) -> None:
        """Leave nothing on the device."""
        self._line.close()

    def _ask(self, do: str, seconds: float = ANSWER_SECONDS, **fields: Any) -> Any:
        return self._answer(do, seconds, **fields)["ok"]

    def _answer(self, do: str, seconds: float = ANSWER_SECONDS, **fields: Any) -> dict[str, Any]:
        """The agent's answer. Its errors name the device, and files by their paths here."""
        try:
            return self._line.ask(do, seconds, **fields)
        except TargetError as error:
            text = str(error)
            for ours, theirs in self._folders.items():
                text = text.replace(f"{self._folder}/{theirs}", str(ours))
            raise TargetError(text if str(self._address) in text else f"on {self._address}: {text}") from error

    def _greeted(self) -> str:
        """The agent's folder. Raises: TargetError where it could not even start."""
        greeting = self._line.greeting
        if "refused" not in greeting:
            return str(greeting["folder"])
        if greeting["refused"] == "python":
            least = ".".join(map(str, LEAST_PYTHON))
            raise TargetError(
                f"{self._address}: the device's Python is {greeting['found']}, the agent needs {least} or later",
                do="install a later one there, and name it: ?python=/path/of/python3 behind the address",
            )
        raise self._lacks("numpy", greeting["python"], greeting["found"])

    def _hello(self) -> dict[str, Any]:
        who = f"{getpass.getuser()}@{socket.gethostname()}"
        answer = self._answer("hello", device=self._there, who=who, wait=WAIT_SECONDS, silence=SILENCE_SECONDS)
        if "held" in answer:
            raise TargetError(
                f"{self._address}: the device is in use by {answer['held']}",
                do="wait until they are done: two measurements at once would spoil each other",
            )
        facts: dict[str, Any] = answer["ok"]
        if facts["missing"] is not None:
            raise self._lacks(self._there["runtime"], facts["executable"], facts["missing"])
        return facts

    def _lacks(self, package: str, python: str, found: str) -> TargetError:
        install = f"{shlex.quote(python)} -m pip install numpy {self._there['runtime']}"
        start = ssh.by_hand_of(self._address) if self._address.scheme == "ssh" else f"adb -s {self._address.host} shell"
        return TargetError(
            f"{self._address}: {python} on the device has no {package}\n{found}",
            do=f"install it there: {start} {shlex.quote(install)}; of a virtual environment there, give the address with "
            "?python=/path/of/its/bin/python",
        )

    def _copied(self, file: DeviceFile) -> str:
        """The path on the device of a file, which is copied with all that loading it reads."""
        parts = self._runtime.files(file)
        folder = file.path.parent
        theirs = self._folders.setdefault(folder, f"files/{len(self._folders)}")
        for part in parts:
            if not part.is_relative_to(folder):
                raise TargetError(
                    f"{file.path}: reads {part}, which lies outside its folder", do="keep its files together"
                )
            self._must_fit(part)
            self._put(part, f"{theirs}/{part.relative_to(folder).as_posix()}")
        return f"{self._folder}/{theirs}/{file.path.name}"

    def _put(self, path: Path, name: str) -> str:
        """Copy a file, once as long as it stays as it is."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if self._names.get(key) != name:
            self._line.put(path, name)
            self._names[key] = name
        return f"{self._folder}/{name}"

    def _must_fit(self, path: Path) -> None:
        """A file that was compiled says for what; an ONNX file runs anywhere."""
        architecture = elf_architecture(path)
        if architecture not in (None, self.facts["machine"]):
            raise TargetError(
                f"{path}: is compiled for {architecture}, and {self._address} is {self.facts['machine']}",
                do="build it for the device's architecture",
            )


class _Watch:
    """A device's own watch on itself, from here."""

    def __init__(self, site: Remote, number: int) -> None:
        self._site, self._number = site, number

    def quietest(self, count: int) -> tuple[int, ...] | None:
        """The `count` cores of the device that do least now."""
        cores = self._site._ask("quietest", watch=self._number, count=count)
        return None if cores is None else tuple(cores)

    def environment(self) -> dict[str, Any]:
        """What the figures hold for: all of it the device's."""
        found: dict[str, Any] = self._site._ask("environment", watch=self._number)
        return {**found, "device": str(self._site._address), "machine": self._site.facts["machine"]}

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        return list(self._site._ask("notes", watch=self._number))
