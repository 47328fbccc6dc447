"""Processes that train one student together, each on its share of every batch.

They add up their gradients by Hugging Face Accelerate: gloo on the CPU, NCCL on GPUs. They meet by a file, for torch's
TCPStore listens on all interfaces whatever address it is given, and talk over the loopback interface alone. The first
process alone reports and writes checkpoints. Gradients are added once a step and not by DistributedDataParallel, whose
hooks see neither the policies' own modules nor two gradients that are kept apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from kdc.core.errors import ModelError
from kdc.distill.devices import device_of
from kdc.distill.settings import Training

PATIENCE = timedelta(hours=12)  # the first process may compute a teacher's answers while the others wait


MEETING = "KDC_MEETING"
"""The file by which the processes meet, in the environment."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where gloo and NCCL listen."""
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", MEETING, *INTERFACES)
"""Of the environment, by which the processes find each other."""
LOST = 3
"""Exit code of a process that ends because another failed."""


class Outcome(IntEnum):
    """How a process's share of a step went; the worst of all counts for all."""

    DONE = 0
    OUT_OF_MEMORY = 1
    FAILED = 2


class Team:
    """A training's processes as one of them sees the others. This one is alone."""

    rank, size = 0, 1

    def worst(self, outcome: Outcome) -> Outcome:
        """Of all processes."""
        return outcome

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Each becomes the sum over all processes, in place."""

    def align(self, module: nn.Module) -> None:
        """Buffers become the first process's."""

    def alike(self, module: nn.Module) -> bool:
        """Whether its parameters are the same in all processes, by their sums."""
        return True

    def begins_alike(self, module: nn.Module) -> bool:
        """Whether its weights are the same in all processes, to the bit; their models may be quite other ones."""
        return True

    def first_goes_first(self) -> Any:
        """A context that the first process leaves before the others enter it."""
        return nullcontext()


class Member(Team):
    """One of several processes, over Accelerate's state of them."""

    def __init__(self, state: Any, utils: Any) -> None:
        self.state, self.utils = state, utils
        self.rank, self.size = state.process_index, state.num_processes

    def worst(self, outcome: Outcome) -> Outcome:
        with _told():
            return Outcome(int(self.utils.gather(torch.tensor([int(outcome)], device=self.state.device)).max()))

    def add(self, tensors: list[torch.Tensor]) -> None:
        with _told(), torch.no_grad():
            flat: torch.Tensor = self.utils.reduce(
                torch.cat([tensor.reshape(-1) for tensor in tensors]), reduction="sum"
            )
            for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def align(self, module: nn.Module) -> None:
        with _told(), torch.no_grad():
            for buffer in module.buffers():
                buffer.copy_(self.utils.broadcast(buffer.contiguous()))

    def alike(self, module: nn.Module) -> bool:
        return self._same(torch.stack([p.detach().double().sum() for p in module.parameters()])[None])

    def begins_alike(self, module: nn.Module) -> bool:
        sha = hashlib.sha256()
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, torch.Tensor):
                sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        number = int.from_bytes(sha.digest()[:7], "big")
        return self._same(torch.tensor([[number]], device=self.state.device))

    def _same(self, own: torch.Tensor) -> bool:
        with _told():
            every: torch.Tensor = self.utils.gather(own)
        return bool((every == every[0]).all())

    def first_goes_first(self) -> Any:
        return self.state.main_process_first()


def installed(training: Training) -> Any:
    """Accelerate, which only a training by several processes needs.

    Raises: ModelError where it is not there.
    """
    try:
        import accelerate
    except ImportError as missing:
        raise ModelError(
            f"training.processes: {training.processes} needs accelerate, which is not installed",
            do="pip install 'kdc[processes]', or set training.processes: 1",
        ) from missing
    return accelerate


@contextmanager
def member(environment: Mapping[str, str], training: Training) -> Iterator[Team]:
    """Be one of the processes, by these variables of the environment, which go again with it."""
    accelerate = installed(training)
    on_cpu = device_of(training).type == "cpu"
    backend = "gloo" if on_cpu else "nccl"
    # Accelerate sets a port where none is set, and leaves it in the environment; nothing listens there.
    with accelerate.utils.patch_environment(**environment, MASTER_PORT="0"):
        with _told():
            dist.init_process_group(
                backend,
                init_method=Path(environment[MEETING]).as_uri(),
                rank=int(environment["RANK"]),
                world_size=int(environment["WORLD_SIZE"]),
                timeout=PATIENCE,
            )
            state = accelerate.PartialState(cpu=on_cpu, backend=backend)  # over the group that is there
        try:
            yield Member(state, accelerate.utils)
        finally:
            state.destroy_process_group()
            accelerate.PartialState._reset_state()  # the next training may have other processes


class LostError(Exception):
    """Another process is not there, or failed: its own words say why."""


@contextmanager
def _told() -> Iterator[None]:
    """What torch raises where the others are gone."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise LostError(str(error)) from error


def lost() -> Exception:
    """What ends a training whose other processes failed."""
    return LostError("another process failed")
