"""What processes do with the network, watched below Python: a C library that is preloaded into each of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")


class Act(NamedTuple):
    """`what`: lookup of a name, connect beyond loopback, listen beyond loopback, or listen-loopback."""

    pid: int
    what: str
    where: str


def cannot_watch() -> str | None:
    """Why processes cannot be watched here."""
    if not sys.platform.startswith("linux"):
        return "a library is preloaded into processes on Linux alone"
    return None if shutil.which("cc") else "there is no C compiler, cc"


class NetworkWatch:
    """Args: folder: gets the library and the list of what was done."""

    def __init__(self, folder: Path) -> None:
        library, self._list = folder / "preloaded.so", folder / "network.txt"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, SOURCE, "-ldl"], check=True)
        self.environment = {"LD_PRELOAD": str(library), "NETWORK_WATCH": str(self._list)}

    def acts(self) -> list[Act]:
        """What was done until now."""
        lines = self._list.read_text().splitlines() if self._list.exists() else []
        return [Act(int(pid), what, where) for pid, what, where in (line.split(" ", 2) for line in lines)]

    def beyond_this_machine(self) -> list[Act]:
        """Lookups, and sockets that reach or wait for other machines."""
        return [act for act in self.acts() if act.what != "listen-loopback"]
