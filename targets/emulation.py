"""Whether the processor that this program sees is emulated by another one, as by qemu-user.

Answers of an emulated processor are right, its times mean nothing: they must not be taken for the device's.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

from targets import proc

_NAMES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm"}
_NAMES |= {"i386": "x86", "i486": "x86", "i586": "x86", "i686": "x86"}
# An ELF file's bytes 18 and 19. Source: the System V ABI, e_machine.
_ELF = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def architecture(machine: str | None = None) -> str:
    """One name for what systems call differently: arm64 is aarch64. Of this process where no name is given."""
    name = (machine or platform.machine()).lower()
    return _NAMES.get(name, name)


def elf_architecture(path: Path) -> str | None:
    """What a program or library was compiled for, by its own header; None where it is no ELF file, or one unknown."""
    with path.open("rb") as file:
        return _architecture_in(file.read(20))


def _architecture_in(head: bytes) -> str | None:
    if len(head) < 20 or not head.startswith(b"\x7fELF"):
        return None
    return _ELF.get(int.from_bytes(head[18:20], "big" if head[5] == 2 else "little"))


@functools.cache
def is_emulated() -> bool:
    """Whether this process runs by emulation, as far as that can be seen.

    Two things give qemu-user away: the processors that /proc lists are the host's, and another process sees the emulator
    where this one sees itself. The second tells of another processor of the same architecture, too.
    """
    own = architecture()
    if not _same(own, _listed()) or not _same(own, _seen_by_a_child()):
        return True
    program = _own_program()
    return program is not None and program != (_read_by_a_child("os.readlink(path)") or program)


def _same(own: str, other: str | None) -> bool:
    """Whether these are one processor's. A 64-bit one runs its own 32-bit programs without emulation."""
    return other is None or own == other or {own, other} in ({"x86", "x86_64"}, {"arm", "aarch64"})


def _listed() -> str | None:
    """The architecture whose fields /proc/cpuinfo has; None where they tell nothing."""
    try:
        fields = {line.partition(":")[0].strip() for line in proc.CPUINFO.read_text().splitlines()}
    except OSError:
        return None
    if "vendor_id" in fields and "flags" in fields:
        return "x86_64"
    if "CPU implementer" in fields:
        return "aarch64"
    return None


def _seen_by_a_child() -> str | None:
    """What another process finds this one to be: qemu answers for /proc/self and the own number, not for a parent's."""
    return _architecture_in(bytes.fromhex(_read_by_a_child("open(path, 'rb').read(20).hex()")))


def _own_program() -> str | None:
    """The program that this process takes itself to be; None where the system does not tell."""
    try:
        return str(Path("/proc/self/exe").readlink())
    except OSError:
        return None


def _read_by_a_child(expression: str) -> str:
    """What an expression on `path`, this process's program in /proc, is for another process; empty where it fails."""
    code = f"import os, sys; path = f'/proc/{{sys.argv[1]}}/exe'; print({expression})"
    command = [sys.executable, "-I", "-S", "-c", code, str(os.getpid())]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=30, text=True).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
