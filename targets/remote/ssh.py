"""Reaching a device by SSH, with the system's own `ssh`: its keys, its known hosts, its configuration.

Nothing is asked on the terminal: a host whose key is unknown, or that wants a password, is refused. `KDC_SSH` is the
program with its options where `ssh` alone will not do, as in `KDC_SSH="ssh -F other_config"`.
"""

from __future__ import annotations

import os
import shlex
import shutil

from kdc.core.errors import TargetError
from targets.remote.address import Address
from targets.remote.line import Ended, Line

CONNECT_SECONDS = 10
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ServerAliveInterval": "5",  # a line that is cut is noticed after 15 seconds
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "LogLevel": "ERROR",
}
_OF_SSH = 255  # ssh's exit code where it failed itself; others are the remote program's
_NOT_FOUND = (126, 127)  # the shell's, where there is no such program, or it cannot be run

# Run by the device's Python before anything of ours is there: takes the agent's bytes, and becomes it.
_BOOT = """\
import os, stat, sys
size, data = int(sys.argv[1]), b""
while len(data) < size:
    part = os.read(0, min(size - len(data), 65536))
    if not part:
        sys.exit(3)
    data += part
bases = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), os.environ.get("TMPDIR"), "/tmp"]
for base in filter(None, bases):
    own = os.path.join(base, "kdc-%d" % os.geteuid())
    folder = os.path.join(own, "agent-%d-%s" % (os.getpid(), os.urandom(8).hex()))
    try:
        os.makedirs(base, 0o700, exist_ok=True)
        if not os.path.lexists(own):
            os.mkdir(own, 0o700)
        found = os.lstat(own)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise OSError("%s is not a folder of this user's alone" % own)
        os.mkdir(folder, 0o700)
        break
    except OSError as error:
        print(error, file=sys.stderr)
else:
    sys.exit("no folder that can be written to")
agent = os.path.join(folder, "agent.pyz")
with open(agent, "xb") as file:
    file.write(data)
os.execv(sys.executable, [sys.executable, agent, "serve"])
"""

# What ssh prints, with the message and the mend.
_CAUSES = (
    ("Host key verification failed", "its host key is not the one that is known, or none is",
     "connect once by hand with `{by_hand}`, and compare the key"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key has changed",
     "if that was you, remove the old key with `ssh-keygen -R`, and connect once by hand with `{by_hand}`"),
    ("Permission denied", "it refuses to let you in",
     "set up a key (`ssh-copy-id`), and see that `{by_hand}` works without a password"),
    ("Too many authentication failures", "it refuses to let you in",
     "name the key for this host in ~/.ssh/config (IdentityFile, IdentitiesOnly)"),
    ("Could not resolve hostname", "its name is unknown", "check the name, or give the address by number"),
    ("Connection refused", "nothing listens there", "see that sshd runs on the device, and give its port: ssh://host:port"),
    ("timed out", "it cannot be reached", "see that the device is switched on and in this network"),
    ("No route to host", "it cannot be reached", "see that the device is switched on and in this network"),
    ("Network is unreachable", "it cannot be reached", "see that this machine has a network"),
)  # fmt: skip


def connect(address: Address, agent: bytes) -> Line:
    """Start the agent on a device.

    Args: agent: the bytes of agent.pyz.

    Raises: TargetError where there is no ssh here, the device cannot be reached or lets nobody in, or has no Python.
    """
    program = shlex.split(os.environ.get("KDC_SSH", "")) or ["ssh"]
    if shutil.which(program[0]) is None:
        raise TargetError(f"there is no program {program[0]!r}", do="install OpenSSH's client (openssh-client)")
    options = [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
    port = ["-p", str(address.port)] if address.port else []
    place = f"{address.user}@{address.host}" if address.user else address.host
    remote = f"exec {shlex.quote(address.python)} -c {shlex.quote(_BOOT)} {len(agent)}"
    return Line([*program, "-T", *options, *port, "--", place, remote], agent, lambda ended: explain(address, ended))


def explain(address: Address, ended: Ended) -> TargetError:
    """What the end of ssh means."""
    by_hand = by_hand_of(address)
    said = f"\n{ended.said}" if ended.said else ""
    if ended.greeted:
        return TargetError(
            f"{address}: the device is gone: the connection was lost in the middle of a measurement{said}",
            do="nothing is left running there; see that it is up (heat, power, network), and run the same command again",
        )
    if ended.code in _NOT_FOUND:
        return TargetError(
            f"{address}: there is no {address.python} on the device{said}",
            do="install Python 3.10 or later there, or name it: ssh://user@host?python=/path/of/python3",
        )
    if ended.code == _OF_SSH:
        for sign, meaning, do in _CAUSES:
            if sign in ended.said:
                return TargetError(f"{address}: {meaning}{said}", do=do.format(by_hand=by_hand))
    how = "is silent" if ended.code is None else f"ended with exit code {ended.code}"
    return TargetError(f"{address}: the agent could not be started: ssh {how}{said}", do=f"see what `{by_hand}` says")


def by_hand_of(address: Address) -> str:
    """The command that a person would type."""
    port = f"-p {address.port} " if address.port else ""
    return f"ssh {port}{address.user}@{address.host}" if address.user else f"ssh {port}{address.host}"
