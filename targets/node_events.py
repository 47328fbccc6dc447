"""ONNX Runtime's profile, read: each node's own time in each run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdc.core.errors import TargetError

KERNEL = "_kernel_time"


class Ran(NamedTuple):
    """A node over the runs: own microseconds in each run in which it ran."""

    name: str
    operator: str
    provider: str
    own_us: list[float]
    activation_bytes: int


class Runs(NamedTuple):
    """All nodes in the order of their first run, and the microseconds of each run."""

    nodes: list[Ran]
    run_us: list[float]


def read_events(events: Sequence[Mapping[str, Any]], warm_up_runs: int) -> Runs:
    """Onnxruntime's profile as nodes by runs.

    A node that holds others (an If, a Loop) has their time within its own: it is taken off. A node that runs several
    times within a run counts with its sum.

    Raises: TargetError where there is no run behind the warm-up.
    """
    whole = [event for event in events if event.get("name") == "model_run"][warm_up_runs:]
    if not whole:
        raise TargetError("onnxruntime's profiler wrote no run down", do="give it more --seconds")
    kernels = [e for e in events if e.get("cat") == "Node" and str(e.get("name", "")).endswith(KERNEL)]
    kernels.sort(key=lambda event: (event["ts"], -event["dur"]))
    own = _own_times(kernels)
    starts = [event["ts"] for event in whole]
    table: dict[tuple[str, str, str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    moved: dict[tuple[str, str, str, str], int] = {}
    for event, spent in zip(kernels, own, strict=True):
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        if run < 0 or event["ts"] > starts[run] + whole[run]["dur"]:
            continue
        arguments = event.get("args", {})
        key = (
            event["name"].removesuffix(KERNEL),
            str(arguments.get("op_name", "?")),
            str(arguments.get("provider", "?")),
            str(arguments.get("node_index", "")),
        )
        table[key][run] += spent
        moved[key] = int(arguments.get("activation_size", 0)) + int(arguments.get("output_size", 0))
    nodes = [Ran(*key[:3], list(by_run.values()), moved[key]) for key, by_run in table.items()]
    return Runs(nodes, [float(event["dur"]) for event in whole])


def _own_times(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Durations less those of the events within them; events are sorted by start, the longer first."""
    own = [float(event["dur"]) for event in events]
    around: list[int] = []
    for index, event in enumerate(events):
        while around and not _within(event, events[around[-1]]):
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
        around.append(index)
    return [max(0.0, one) for one in own]


def _within(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> bool:
    # Only nodes with bodies hold others: two short ones may share a microsecond.
    holds = outer.get("args", {}).get("op_name") in ("If", "Loop", "Scan")
    return holds and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]
