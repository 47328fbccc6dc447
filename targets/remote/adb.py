"""Reaching an Android device by `adb`: the same agent, the same conversation, over `adb shell` instead of SSH.

This was tested against a program that stands in for `adb`, records how it was called and runs what it was given, and not
on a phone. It needs Android 7 or later (for `adb shell -T`, whose input and output are not changed on their way) and a
Python with numpy and the runtime that adb's shell may run: `adb://serial?python=/path/of/python3`. `KDC_ADB` is the
program with its options where `adb` alone will not do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess

from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.remote.address import Address
from targets.remote.line import Ended, Line

FOLDER = "/data/local/tmp"  # the one that adb's shell may write to
PUSH_SECONDS = 60
_NOT_FOUND = (126, 127)
_CAUSES = (
    ("unauthorized", "it does not trust this machine", "accept this machine's key on the device's screen"),
    ("offline", "it is offline", "plug it in again, or `adb reconnect`"),
    ("not found", "adb knows no such device", "see `adb devices`, and give the serial number that it shows"),
    ("no devices", "adb knows no such device", "see `adb devices`, and give the serial number that it shows"),
)


def connect(address: Address, agent: bytes) -> Line:
    """Push the agent to a device and start it there.

    Raises: TargetError where there is no adb here, it cannot reach the device, or that has no Python.
    """
    program = shlex.split(os.environ.get("KDC_ADB", "")) or ["adb"]
    if shutil.which(program[0]) is None:
        raise TargetError(f"there is no program {program[0]!r}", do="install Android's platform tools (package adb)")
    adb = [*program, "-s", address.host]
    # Made there, so that nobody else can have made it before.
    own = _must(address, [*adb, "shell", "-T", f"umask 077; mktemp -d {FOLDER}/kdc-agent-XXXXXXXXXX"]).strip()
    if not re.fullmatch(re.escape(FOLDER) + r"/kdc-agent-\w+", own):
        raise TargetError(f"{address}: the device made no folder: {own[:200]!r}", do="see `adb shell mktemp -d`")
    start = f"exec {shlex.quote(address.python)} {own}/agent.pyz serve"
    try:
        with scratch_folder("agent") as here:
            packed = here / "agent.pyz"
            packed.write_bytes(agent)
            _must(address, [*adb, "push", str(packed), f"{own}/agent.pyz"])
        return Line([*adb, "shell", "-T", start], b"", lambda ended: explain(address, ended))
    except TargetError:  # nobody is there to remove what was pushed
        subprocess.run(
            [*adb, "shell", f"rm -rf {own}"],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=PUSH_SECONDS,
        )
        raise


def _must(address: Address, command: list[str]) -> str:
    """What the command printed."""
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=PUSH_SECONDS, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(
            f"{address}: adb was not done after {PUSH_SECONDS} s", do="plug the device in again"
        ) from error
    if done.returncode != 0:
        raise explain(address, Ended(done.returncode, (done.stderr + done.stdout).strip(), greeted=False))
    return done.stdout


def explain(address: Address, ended: Ended) -> TargetError:
    """What the end of adb means."""
    said = f"\n{ended.said}" if ended.said else ""
    if ended.greeted:
        return TargetError(
            f"{address}: the device is gone: the connection was lost in the middle of a measurement{said}",
            do="see `adb devices`, and run the same command again",
        )
    if ended.code in _NOT_FOUND:
        return TargetError(
            f"{address}: there is no {address.python} on the device{said}",
            do="name a Python that adb's shell may run: adb://serial?python=/path/of/python3",
        )
    for sign, meaning, do in _CAUSES:
        if sign in ended.said:
            return TargetError(f"{address}: {meaning}{said}", do=do)
    how = "is silent" if ended.code is None else f"ended with exit code {ended.code}"
    return TargetError(f"{address}: the agent could not be started: adb {how}{said}", do="see `adb devices`")
