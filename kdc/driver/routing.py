"""What early exits are worth: the cascade's file beside the same student without exits, over real inputs one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdc.core.budget import Verdict
from kdc.core.data import Split
from kdc.core.store import key_of
from kdc.driver.evaluate import Array
from kdc.driver.keys import measuring_parts
from kdc.driver.lowering import Candidate, Lowering
from kdc.driver.report import Drop, Estimate, ExitRow, Routing, Spread
from kdc.numerics import stats
from targets.over_inputs import InputTimes, over_inputs


def exits_of(candidate: Candidate) -> list[str]:
    """The names of a cascade's exits, in their order."""
    decision = candidate.made.artifact.lineage[-1].decision
    return [*(one["after"] for one in decision["exits"]), "the last layer"]


def routing(
    lowering: Lowering,
    cascade: Candidate,
    plain: Candidate,
    name: str,
    split: Split,
    seen: tuple[Array, Array],
    without: Array,
) -> Routing:
    """Time both files over a split, input by input, and pair their answers.

    Args: name: of the split. seen: outputs [n, ...] and exits [n] of the cascade; without: outputs [n, ...] of the plain
        student; all on that split.
    """
    task, labels = lowering.inputs.task, split.labels.numpy()
    outputs, taken = seen
    scores, reference = task.scores(outputs, labels), task.scores(without, labels)
    some = np.unique(np.linspace(0, len(split) - 1, min(lowering.inputs_most, len(split))).round().astype(int))
    times = _times(lowering, cascade, plain, name, [tensor[some].numpy() for tensor in split.inputs])
    of_cascade, left = times.of(0), taken[some]
    rows = [
        ExitRow(
            after=after,
            share=float((taken == place).mean()),
            points=100.0 * float(scores[taken == place].mean()) if (taken == place).any() else None,
            mean_ms=float(of_cascade[left == place].mean()) if (left == place).any() else None,
        )
        for place, after in enumerate(exits_of(cascade))
    ]
    last = left == len(rows) - 1
    generator = np.random.default_rng(0)
    return Routing(
        split=name,
        exits=tuple(rows),
        cascade=_spread(times, 0),
        plain=_spread(times, 1),
        speedup=_estimate(times.ratio(1, 0)),
        last_exit=_estimate(times.ratio(0, 1, last, last)) if last.any() else None,
        drop=Drop(**stats.paired_drop(reference, scores, generator)._asdict()),
        disagreeing=cascade.disagreeing,
    )


def exit_limits(found: Routing, settings: dict[str, Any]) -> tuple[Verdict, ...]:
    """What early exits must be worth to ship, beside the same student without them: the pass's own settings as limits.

    Gain and cost are held by the worse end of their interval. The drop is held by its better end: the pass chose the
    thresholds by the drop itself, on the same samples, and here it must not be proven worse.
    """
    limits = [
        Verdict(
            name="early_exit_gain",
            limit=settings["min_gain"],
            bound="at least",
            value=found.speedup.low,
            end="lower end of the 95% interval, mean over inputs",
        )
    ]
    if found.last_exit is not None:
        cost, name = found.last_exit.high, "last_exit_cost"
        limits.append(
            Verdict(name=name, limit=settings["max_last_exit_cost"], value=cost, end="upper end of the 95% interval")
        )
    if settings["mean_latency_ms"] is None and settings["max_drop"] is not None:
        drop, name = found.drop.low, "early_exit_drop"
        limits.append(
            Verdict(name=name, limit=settings["max_drop"], value=drop, end="lower end of the 95% interval, validation")
        )
    return tuple(limits)


def _times(lowering: Lowering, cascade: Candidate, plain: Candidate, name: str, inputs: list[Array]) -> InputTimes:
    """Times from the store, or measured now."""
    steps, device = lowering.steps, lowering.inputs.device
    parts = {
        "files": [cascade.sha256, plain.sha256],
        "split": name,
        "data": lowering.inputs.data.fingerprint,
        "samples": len(inputs[0]),
        "seed": lowering.inputs.recipe.seed,
        **measuring_parts(device, over_inputs.__module__),
    }
    entry = steps.store.find(f"{cascade.label}+inputs", key_of(parts))
    if entry is None:
        times = over_inputs(
            [cascade.file, plain.file], device, inputs, seed=lowering.inputs.recipe.seed, emit=steps.emit
        )
        entry = steps.store.write(
            f"{cascade.label}+inputs", parts, {}, {"times.json": lambda path: path.write_text(times.model_dump_json())}
        )
    return InputTimes.model_validate_json(entry.file("times.json").read_text())


def _spread(times: InputTimes, file: int) -> Spread:
    return Spread(
        mean_ms=times.mean_ms(file),
        median_ms=times.median_ms(file),
        p95_ms=times.p95_ms(file),
        worst_ms=float(times.of(file).max()),
    )


def _estimate(interval: stats.Interval) -> Estimate:
    return Estimate(ratio=interval.value, low=interval.low, high=interval.high)
