"""What a process and its descendants listen on, read from /proc (Linux)."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
LISTEN, UNCONNECTED = "0A", "07"  # of TCP; of UDP, which has no listening


class Bound(NamedTuple):
    """A socket that waits for others, and the process that has it."""

    pid: int
    command: str
    kind: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.address).is_loopback


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = {}
    for status in PROC.glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def bound_by(pid: int) -> list[Bound]:
    """What a process waits on; nothing where it has ended."""
    try:
        inodes = {
            match[1]
            for link in (PROC / str(pid) / "fd").iterdir()
            if (match := re.fullmatch(r"socket:\[(\d+)\]", _link(link)))
        }
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return [
            Bound(pid, command, kind, *_address(fields[1]))
            for kind in ("tcp", "tcp6", "udp", "udp6")
            for line in (PROC / str(pid) / "net" / kind).read_text().splitlines()[1:]
            if (fields := line.split())[9] in inodes
            and fields[3] == (LISTEN if kind.startswith("tcp") else UNCONNECTED)
        ]
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 -- it is no path
    except OSError:
        return ""


def _address(text: str) -> tuple[str, int]:
    """Of "0100007F:1F90": each four bytes in the machine's order."""
    digits, port = text.split(":")
    words = bytes.fromhex(digits)
    ordered = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    return socket.inet_ntop(socket.AF_INET if len(ordered) == 4 else socket.AF_INET6, ordered), int(port, 16)


class Looking:
    """Collects all that a process and its descendants ever wait on, as long as the block runs."""

    def __init__(self, pid: int, every_seconds: float = 0.1) -> None:
        self.found: set[Bound] = set()
        self.looks = 0
        self._pid, self._every = pid, every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Looking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._over.wait(self._every):
            self.looks += 1
            for pid in descendants(self._pid):
                self.found.update(bound_by(pid))
