"""What the student sees in which order: views of the training split, and batches of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from kdc.core.contract import Context
from kdc.core.observe import Progress
from kdc.distill.answers import Answers
from kdc.distill.devices import sent
from kdc.distill.policy import Drawn
from kdc.distill.settings import Training
from kdc.distill.views import View, view

PROGRESS_SECONDS = 0.5


class Views:
    """The views of a training by epoch. With workers the next epoch's is made while one is trained on.

    Threads and not processes: augmentation is torch's own work, which other threads need not wait for, and nothing has to
    be sent. Any number of them gives the same bytes, for each block of samples has a generator named by its place.
    """

    def __init__(self, context: Context, training: Training) -> None:
        self.context, self.training = context, training
        self._workers = ThreadPoolExecutor(training.workers) if training.workers else None
        self._ahead = ThreadPoolExecutor(1) if training.workers else None
        self._next: tuple[int, Future[View]] | None = None

    def __enter__(self) -> Views:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the workers go."""
        for pool in (self._ahead, self._workers):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def of(self, epoch: int) -> View:
        """The view of this epoch; the one after it is begun."""
        number = epoch % self.training.views
        ahead, self._next = self._next, None
        made = ahead[1].result() if ahead is not None and ahead[0] == number else self.make(number)
        after = (epoch + 1) % self.training.views
        if self._ahead is not None and epoch + 1 < self.training.epochs and after != number:
            self._next = after, self._ahead.submit(self.make, after)
        return made

    def make(self, number: int) -> View:
        """View `number`."""
        return view(self.context.data, self.context.seed, number, self.training.transforms, self._workers)


class Drawing:
    """The batches of a training, each named by its step."""

    def __init__(self, context: Context, training: Training, device: torch.device) -> None:
        self.context, self.device, self.views = context, device, training.views
        samples = len(context.data.train)
        self.batch = min(training.batch, samples)
        self.steps_per_epoch = samples // self.batch  # a last smaller batch would give BatchNorm another noise
        self.steps = training.epochs * self.steps_per_epoch

    def batches(self, step: int, seen: View, answers: Answers | None) -> Iterator[Drawn]:
        """From this step to the end of its epoch, with the teacher's outputs on the view where they are stored."""
        context, device = self.context, self.device
        epoch, first = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(seen.samples), generator=context.generator(f"order.{epoch}"))
        shown = 0.0
        for i in range(first, self.steps_per_epoch):
            index = order[i * self.batch : (i + 1) * self.batch]
            batch = seen.samples[index]
            number = epoch * self.steps_per_epoch + i
            yield Drawn(
                number=number,
                index=index,  # on the CPU: it counts rows of tensors that may be there or on the device
                inputs=tuple(sent(tensor, device) for tensor in batch.inputs),
                labels=sent(batch.labels, device),
                teacher=None if answers is None else sent(answers[index], device),
                progress=number / self.steps,
                view=epoch % self.views,
                others=None if seen.others is None else sent(seen.others[index], device),
                share=None if seen.share is None else sent(seen.share[index], device),
            )
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                context.emit(Progress(f"{context.step}: training", number + 1, self.steps))
