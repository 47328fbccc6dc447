"""The student's forward in a training: in lower precision inside, or compiled, where the recipe says so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from kdc.core.observe import Emit, Note
from kdc.distill.parts import Remembered, out_of_memory
from kdc.distill.settings import Training

LOWER = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
COMPILER = "inductor"


class Forward:
    """The student's outputs of a batch, in float32 where the precision is mixed, so that objectives are computed in it."""

    def __init__(self, student: nn.Module, training: Training, device: torch.device) -> None:
        self.student, self.device = student, device
        self.lower = LOWER.get(training.precision)
        self._run: Callable[..., torch.Tensor] = student

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.lower is None:
            return self._run(*inputs)
        with torch.autocast(self.device.type, self.lower):
            outputs = self._run(*inputs)
        return outputs.float()

    def compile(self, probe: tuple[torch.Tensor, ...], emit: Emit) -> None:
        """Compile it for batches of the probe's size. Where the compiler fails, it stays as it is, and a note says why.

        Tried forwards and backwards before the first step, with the hooks of all policies on, for a step that fails
        halfway would have moved BatchNorm's statistics.
        """
        compiled = torch.compile(self.student, backend=COMPILER)
        before = Remembered(self.student)
        mode = self.student.training
        self.student.train()
        self._run = compiled
        try:
            self(*probe).float().sum().backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if out_of_memory(error):
                return  # the loop has an answer to it
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            self._run = self.student
            said = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
            emit(Note(f"training.compile: torch.compile failed, and the training goes on without it: {said}"))
        finally:
            before.restore()
            self.student.train(mode)
            self.student.zero_grad(set_to_none=True)
