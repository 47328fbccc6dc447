"""Ctrl-C, SIGTERM and SIGHUP stop a command alike: it cleans up, and its exit code tells which signal it was.

Each becomes the KeyboardInterrupt that Python makes of a Ctrl-C. Only the command line listens: the signals of a program
that imports kdc are that program's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CLEANING_SECONDS = 5.0
"""After the first signal; those that follow within it do not interrupt the cleaning up."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

received: list[int] = []
"""The signals that came, in order. What Python raises inside a library's callback or destructor is lost there, and the run
would go on: so whoever is called again and again looks here, and raises it again."""
_last: list[float] = []


@contextmanager
def listening() -> Iterator[None]:
    """Listen while the block runs. A signal that is ignored at the start, as under nohup, stays ignored."""
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        received.clear()


@contextmanager
def deaf() -> Iterator[None]:
    """Ignore the signals while the block runs, which must be short."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """128 and the number of the first signal, as a shell tells it; of Ctrl-C where none was heard."""
    return 128 + (received[0] if received else signal.SIGINT)


def name() -> str:
    """Of the first signal."""
    return signal.Signals(received[0]).name if received else "SIGINT"


def _stop(number: int, frame: FrameType | None) -> None:
    cleaning = bool(received) and time.monotonic() - _last[0] < CLEANING_SECONDS
    received.append(number)
    if not cleaning:
        _last[:] = [time.monotonic()]
        raise KeyboardInterrupt
