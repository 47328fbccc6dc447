"""Devices to measure on that are this machine: reached over a real sshd on loopback, or over a pipe."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
BLOCKED = "pydantic", "psutil", "onnx", "onnx_ir", "torch", "scipy", "rich", "typer", "yaml", "sklearn", "google"


def device_python(folder: Path, blocked=(), packages=("numpy", "numpy.libs", "onnxruntime")) -> Path:
    """A Python that has these packages and nothing else of ours, as on a device."""
    site = folder / "site"
    site.mkdir(parents=True)
    installed = Path(find_spec("numpy").origin).parents[1]
    for name in packages:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    for info in installed.glob("onnxruntime-*.dist-info"):
        (site / info.name).symlink_to(info)
    (site / "sitecustomize.py").write_text(
        f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {(*BLOCKED, *blocked)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
    )
    python = folder / "python3"
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH='{site}' PYTHONNOUSERSITE=1\nexec '{sys._base_executable}' \"$@\"\n"
    )
    python.chmod(0o755)
    return python


class Sshd:
    """An sshd of this test's own, with its host key, its user's key, and a home that can be looked into."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        for name in ("host", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            "PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
            f"PermitRootLogin yes\nSetEnv XDG_CACHE_HOME={self.cache} KDC_DEVICE_LOCK={folder}/lock\n"
        )
        self.config = self.client("known", "user")
        key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd confines itself; the package's service makes it
        command = [SSHD, "-D", "-E", str(folder / "log"), "-f", str(folder / "sshd_config")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.user = getpass.getuser()

    def client(self, known: str, key: str) -> Path:
        """A client's configuration with these known hosts and this key."""
        path = self.folder / f"client-{known}-{key}"
        path.write_text(
            f"Host *\n  IdentityFile {self.folder}/{key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.folder}/{known}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
        )
        return path

    def address(self, python) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}?python={python}"

    def wait(self) -> str | None:
        """Until it listens; why it does not."""
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return None
        return (self.folder / "log").read_text()


def processes_with(text) -> list[int]:
    """Those whose command line has this text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(text).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass  # it ended meanwhile
    return found


def until(holds, seconds=30.0) -> bool:
    """Whether it comes to hold within this time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def folders_in(cache: Path) -> list[Path]:
    return sorted([*cache.glob("kdc-*/agent-*"), *cache.glob("kdc-agent-*")])
