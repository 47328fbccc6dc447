"""What early exits are worth: the cascade's file beside the same student without exits, over real inputs one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdc.core.data import Split
from kdc.core.store import key_of
from kdc.driver.evaluate import Array
from kdc.driver.lowering import INPUTS_MOST, Candidate, Lowering
from kdc.driver.report import Drop, Estimate, ExitRow, Routing, Spread
from kdc.driver.steps import measuring_parts
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
    times = _times(lowering, cascade, plain, name, [tensor[some].numpy() for tensor in split.inputs], len(split))
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


def why_not(found: Routing, settings: dict[str, Any]) -> str | None:
    """Why a cascade may not ship in place of its student without exits; None: it may.

    It must be faster in the mean beyond the noise, and not proven worse than the pass's settings allow.
    """
    allowed = settings["max_drop"] if settings["mean_latency_ms"] is None else None
    if found.speedup.low <= 1:
        return (
            f"early exits do not help: in the mean {found.speedup.ratio:.2f}x [{found.speedup.low:.2f}, "
            f"{found.speedup.high:.2f}] as fast as the same student without them"
        )
    if allowed is not None and found.drop.low > allowed:
        return (
            f"early exits cost accuracy: {found.drop.points:.2f} points [{found.drop.low:.2f}, {found.drop.high:.2f}] "
            f"below the same student without them, where route.max_drop is {allowed:g}"
        )
    return None


def _times(
    lowering: Lowering, cascade: Candidate, plain: Candidate, name: str, inputs: list[Array], of: int
) -> InputTimes:
    """Times from the store, or measured now. Args: of: samples of the split that the inputs are taken from."""
    steps, device = lowering.steps, lowering.inputs.device
    parts = {
        "files": [cascade.sha256, plain.sha256],
        "split": name,
        "data": lowering.inputs.data.fingerprint,
        **({} if len(inputs[0]) >= min(INPUTS_MOST, of) else {"inputs": len(inputs[0])}),
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
