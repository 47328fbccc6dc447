"""What can become of a file of kdc's own."""

import os
from collections.abc import Callable
from pathlib import Path

from kdc.core.writing import discard


def _swapped(path: Path, stand: Callable[[Path], object]) -> None:
    discard(path)
    stand(path)


def _middle_changed(path: Path) -> None:
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes(byte ^ 1 for byte in content[at : at + 1]) + content[at + 1 :])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "a changed bit": _middle_changed,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 3),
    "other JSON": lambda path: path.write_text('[{"recipe": 1}]'),
    "a folder": lambda path: _swapped(path, Path.mkdir),
    "a dangling link": lambda path: _swapped(path, lambda at: at.symlink_to(at.parent / "nothing")),
    "a pipe": lambda path: _swapped(path, os.mkfifo),
    "without permissions": lambda path: path.chmod(0),
}
