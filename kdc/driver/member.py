"""What a process runs that shares a training with the one that started it: the step again, until that training.

It reads the recipe, the store and its own copy of the step's work folder, and writes into that copy alone; the teacher's
answers' cache is common to all.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from kdc.core.deadline import Deadline
from kdc.core.errors import KdcError, LawError, UserError
from kdc.core.observe import silent
from kdc.core.store import Entry, Parts, Store
from kdc.core.user_frames import exits_refused
from kdc.distill.team import LOST
from kdc.driver.again import JOB, RECIPE, WORK, Job, Replayed
from kdc.driver.inputs import load
from kdc.driver.plan import make
from kdc.driver.recipe import load_recipe
from kdc.driver.steps import Kept, Steps
from passes import PASSES
from targets.tied import end_with_parent


class _Read(Store):
    """A store of another process, which alone writes."""

    def write(
        self, step: str, parts: Parts, record: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]
    ) -> Entry:
        raise LawError(f"{step}: a process that shares a training would store something")


def go_on(job: Job, folder: Path) -> NoReturn:
    """The step up to the training, and along there.

    Raises: SystemExit behind the training. LawError where the step does not come to it.
    """
    recipe = load_recipe(folder / RECIPE, {}, [], PASSES)
    store = _Read(job.store)
    inputs = load(recipe, store, allow_torchscript=job.allow_torchscript)
    steps = Steps(inputs, store, silent, Kept(job.cache, job.gigabytes))
    made = steps.root
    for planned in make(recipe.passes, inputs.device).compress:
        if planned.label == job.step:
            told = Replayed(job.figures)
            context = steps.context(job.step, made.key, told.forecasts, told.teacher_cost)
            work, minutes = folder / WORK, recipe.budget.compile_minutes
            # The first process alone looks at the clock; this one follows what is written, and what it hears in the loop.
            deadline = None if minutes is None else Deadline(lambda: 0.0, math.inf, minutes, work)
            steps.make(planned, made.artifact, replace(context, work=work, joins=job.training, deadline=deadline))
            break
        found = steps.stored(planned.label, planned, made)
        if found is None:
            raise LawError(
                f"{planned.label}, the step before {job.step}, is not in the store as another process sees it"
            )
        made = found
    raise LawError(f"{job.step}: another process, which goes on with this step, does not come to {job.training}")


def main() -> None:
    """Read the folder that the command line names; a failure's words are on standard error."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    folder = Path(sys.argv[1])
    job = Job.model_validate_json((folder / JOB).read_text())
    if os.getppid() != job.parent:  # it was gone before the system could be told
        sys.exit(LOST)
    torch.set_num_threads(job.threads)
    try:
        with exits_refused():
            go_on(job, folder)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KdcError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
