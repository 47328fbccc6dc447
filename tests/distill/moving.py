"""One step of the optimizer as the loop takes it, for a batch in one part."""

import torch

from kdc.distill.stepping import Stepper


def step(stepper: Stepper, of_labels: torch.Tensor | None, of_teacher: torch.Tensor | None, progress: float) -> None:
    """Down the sum of both losses, each a mean over the batch."""
    stepper.clear()
    stepper.gather(of_labels, of_teacher)
    stepper.move(progress)
