"""How teacher and student fare under the attack that a training of the recipe prepares the student for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel

from kdc.core.data import Split
from kdc.core.observe import Note, Progress
from kdc.core.store import Parts, key_of
from kdc.distill.attack import Bounds, drawn, robust_scores
from kdc.distill.strategy_settings.adversarial import Attack
from kdc.driver.plan import Plan, Planned
from kdc.driver.report import Metric, Robustness
from kdc.driver.sources import digests, versions
from kdc.driver.steps import Made, Steps
from kdc.numerics import stats

SAMPLES = 1000  # of the test split; each costs a forward and a backward a step, of both models


class Prepared(NamedTuple):
    """A pass, and a strategy of one of its trainings that has an attack."""

    label: str
    strategy: str
    attack: Attack


def robustness(steps: Steps, plan: Plan, student: Made) -> Robustness | None:
    """Teacher and student under the strongest attack of the plan's trainings; None, and nothing is run, without one.

    Each model's scores are in the store, so that a run that was killed attacks none again that is done.
    Raises: ModelError where a model's outputs have no gradient, DataError where the inputs cannot be attacked.
    """
    against = strongest(plan.compress)
    if against is None:
        return None
    split, task = steps.inputs.data.test, steps.inputs.task
    chosen = drawn(split, SAMPLES, steps.inputs.recipe.seed)

    def metric(made: Made) -> Metric:
        interval = stats.accuracy_interval(_scores(steps, made, against.attack, chosen))
        return Metric(name=f"robust {task.metric}", points=interval.value, low=interval.low, high=interval.high)

    return Robustness(
        strategy=against.strategy,
        trained=against.label,
        attack=against.attack,
        samples=len(chosen),
        of=len(split),
        teacher=metric(steps.root),
        student=metric(student),
        after=student.name,
    )


def strongest(planned: Sequence[Planned]) -> Prepared | None:
    """Of all attacks that the passes' trainings name, the one with the largest epsilon, then with the most steps."""
    found = [Prepared(one.label, *pair) for one in planned for pair in _attacks(one.settings)]
    return max(found, key=lambda one: (one.attack.epsilon, one.attack.steps), default=None)


def _attacks(value: Any) -> Iterator[tuple[str, Attack]]:
    """The strategies in a pass's settings that have an attack: their kinds, and the attacks."""
    if isinstance(value, BaseModel):
        attack = getattr(value, "attack", None)
        if isinstance(attack, Attack):
            yield str(getattr(value, "kind", type(value).__name__)), attack
        value = tuple(member for _, member in value)
    if isinstance(value, tuple):
        for member in value:
            yield from _attacks(member)


def _scores(steps: Steps, made: Made, attack: Attack, split: Split) -> stats.Floats:
    """The task's score of each sample under the attack, [n] in 0..1; stored."""
    inputs, name = steps.inputs, f"{made.name}+robust"
    parts: Parts = {
        "model": made.key,
        "attack": attack.model_dump(mode="json"),
        "samples": len(split),
        "data": inputs.data.fingerprint,
        "task": inputs.task.name,
        "seed": inputs.recipe.seed,
        "source": digests("kdc.distill.attack") | digests(type(inputs.task).__module__),
        "libraries": versions(("torch",)),
        "threads": torch.get_num_threads(),
    }
    entry = steps.store.find(name, key_of(parts))
    if entry is None:
        steps.emit(Note(f"attacking {made.name} on {len(split)} samples of the test split"))

        def report(done: int) -> None:
            steps.emit(Progress(f"{made.name}: attack", done, len(split), "samples"))

        bounds = Bounds.of(inputs.data.train, attack)
        found = robust_scores(
            made.artifact.model, split, inputs.task, attack, bounds, inputs.recipe.seed, report=report
        )
        entry = steps.store.write(name, parts, {"scores": found.tolist()}, {})
    return np.array(entry.record["scores"])
