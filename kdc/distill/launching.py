"""The processes of one training: the first starts the others and ends with them; each of those joins, and ends behind it.

Another process is *the same step, gone on with*: it is given a copy of the step's work folder, passes over what is
finished there as after a kill, comes to the training, and joins. So nothing has to be sent but files, and no model, no
data and no code ever leaves a process. It is a fresh interpreter: a fork would break CUDA and OpenMP in the child.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from kdc.core.contract import Again, Context
from kdc.core.errors import KdcError, ModelError, UserError
from kdc.core.scratch import scratch_folder
from kdc.core.user_frames import exits_refused
from kdc.distill.devices import device_of
from kdc.distill.settings import Training
from kdc.distill.team import INTERFACES, LOST, MEETING, VARIABLES, LostError, Team, installed, member

_ARRIVED = "KDC_ARRIVED"  # the file by which a process says that it has come to its training
_LOOK_SECONDS = 0.05
_LOOPBACKS = ("lo", "lo0")  # on Linux; on macOS and BSD


def gathered(context: Context, training: Training, ended: bool) -> AbstractContextManager[Team]:
    """The team of a training: nobody else, or as many processes as its settings say.

    Args: ended: whether the training has ended before, so that there is nothing to share.
    Raises: ModelError where processes cannot be started, or where one of them finds a mistake of the user's in its share;
        KdcError where one is lost. In another process than the first, SystemExit behind the training.
    """
    if context.joins is not None:
        return _joined(context, context.joins, training, ended)
    return nullcontext(Team()) if ended or training.processes == 1 else _first(context, training)


@contextmanager
def _first(context: Context, training: Training) -> Iterator[Team]:
    if context.again is None:
        raise ModelError(
            f"{context.step}: training.processes is {training.processes}, and this training is in no step of `kdc compress` "
            "that another process could go on with",
            do="set training.processes: 1",
        )
    device_of(training)  # it says where there are too few GPUs
    installed(training)
    if "WORLD_SIZE" in os.environ:
        raise ModelError(
            "training.processes starts the processes itself; found WORLD_SIZE in the environment, as torchrun and "
            "accelerate launch set it",
            do="start one kdc, without a launcher",
        )
    loopback = _loopback(context)
    threads = torch.get_num_threads()
    share = _share(training)
    with scratch_folder("members") as folder, _ending() as others:
        variables = {
            "WORLD_SIZE": str(training.processes),
            "LOCAL_WORLD_SIZE": str(training.processes),
            MEETING: str(folder / "meeting"),
            **dict.fromkeys(INTERFACES, loopback),
        }
        for rank in range(1, training.processes):
            others.append(_start(context.again, context.step, folder, rank, variables))
        _wait(context, others)
        torch.set_num_threads(share)  # all compute alike
        try:
            with member(variables | _ranked(0) | _threads(share), training) as team:
                yield team
        except LostError as lost:
            raise _told(context, others) from lost
        finally:
            torch.set_num_threads(threads)
        for other in others:
            with suppress(subprocess.TimeoutExpired):
                other.process.wait(60)


@contextmanager
def _joined(context: Context, name: str, training: Training, ended: bool) -> Iterator[Team]:
    """What a training is in another process than the first: one that has ended, or the one to join."""
    if context.step != name:
        if not ended:  # a pass that does without a training that failed does without it here, too
            raise ModelError(
                f"{context.step}: another process, which goes on with this step to join {name}, comes to a training that "
                "has not ended: it failed, or the step does not do the same again from its work folder"
            )
        yield Team()
        return
    installed(training)  # its import takes a while, and the first process is not to wait for one that may still fail
    share = _share(training)
    torch.set_num_threads(share)
    Path(os.environ[_ARRIVED]).touch()
    try:
        variables = {name: os.environ[name] for name in VARIABLES} | _threads(share)
        with member(variables, training) as team, exits_refused():
            yield team
    except LostError:
        sys.exit(LOST)
    except KdcError as error:
        # Not for the pass that called: a search may not leave a candidate out in one process alone.
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


@dataclass(frozen=True)
class _Other:
    """A process but the first, where it says that it has come to the training, and what it says on standard error."""

    process: subprocess.Popen[bytes]
    arrived: Path
    said: IO[bytes]

    @property
    def words(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors="replace").strip()[-2000:]


@contextmanager
def _ending() -> Iterator[list[_Other]]:
    """Processes that do not outlive the block."""
    others: list[_Other] = []
    try:
        yield others
    finally:
        for other in others:
            other.process.kill()
            other.process.wait()
            other.said.close()


def _start(again: Again, name: str, folder: Path, rank: int, variables: Mapping[str, str]) -> _Other:
    own = folder / str(rank)
    own.mkdir()
    arrived = folder / f"{rank}.arrived"
    arguments, environment = again(name, own)
    said: IO[bytes] = (folder / f"{rank}.said").open("w+b")
    process = subprocess.Popen(
        [*arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env={**environment, **variables, **_ranked(rank), _ARRIVED: str(arrived)},
    )
    return _Other(process, arrived, said)


def _wait(context: Context, others: list[_Other]) -> None:
    """Until all have come to the training. A process alone at the meeting point would wait for hours."""
    while not all(other.arrived.exists() for other in others):
        for other in others:
            if other.process.poll() == UserError.exit_code:
                raise UserError(other.words)
            if other.process.poll() is not None:
                raise KdcError(
                    f"{context.step}: another process of the training ended before it (exit code "
                    f"{other.process.returncode}): {other.words}",
                    do="set training.processes: 1",
                )
        time.sleep(_LOOK_SECONDS)


def _told(context: Context, others: list[_Other]) -> KdcError:
    """Of the first process to fail; one that failed because another did says nothing of why."""
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.process.wait(60)  # on a busy machine a process takes a while to end
    failed = sorted((o for o in others if o.process.returncode), key=lambda other: other.process.returncode == LOST)
    if failed and failed[0].process.returncode == ModelError.exit_code:
        return ModelError(failed[0].words)
    how = f" (exit code {failed[0].process.returncode}): {failed[0].words}" if failed else ""
    return KdcError(
        f"{context.step}: a process of the training was lost{how}; the last checkpoint is kept",
        do="run the same command again to go on, or set training.processes: 1",
    )


def _loopback(context: Context) -> str:
    """The interface that reaches this machine alone; without its name gloo takes that of the machine's host name."""
    found = [name for _, name in socket.if_nameindex() if name in _LOOPBACKS]
    if not found:
        names = ", ".join(name for _, name in socket.if_nameindex()) or "none"
        raise ModelError(
            f"{context.step}: training.processes talk over the loopback interface alone, {' or '.join(_LOOPBACKS)}; this "
            f"machine's interfaces are {names}",
            do="set training.processes: 1",
        )
    return found[0]


def _ranked(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _share(training: Training) -> int:
    """Threads of each process. On its way to the training it has all: fewer would give other bytes."""
    return max(1, torch.get_num_threads() // training.processes)


def _threads(count: int) -> dict[str, str]:
    """Without it Accelerate chooses a number itself."""
    return {"OMP_NUM_THREADS": str(count)}
