"""Where a model's time goes, node by node, in ONNX Runtime: its own profiler, in a process that times nothing else.

The runtime rewrites a graph before it runs it: nodes are fused, renamed and moved to other layouts. What ran is joined
back to the file's nodes by the values it makes (a fused node keeps the name of the last value, a node in the blocked
layout is named by it), else by its name; a node of the file stands for what it was written from, torch's module.

The profiler counts whole microseconds and costs some of them itself: shares are to be trusted, sums are not a latency.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import onnx_ir
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from targets.apart import run_apart
from targets.cascade import is_cascade
from targets.node_events import Runs, read_events
from targets.node_join import Join
from targets.node_runs import Found, Job
from targets.onnxruntime import CPU
from targets.roofline import Bound, Peaks, bound
from targets.runtime import Array
from targets.samples import write_samples

LIMIT_SECONDS = 300.0


class NodeTime(BaseModel, frozen=True, extra="forbid"):
    """One node as it ran. `time_us` is the median over the runs in which it ran, what ran inside it taken off."""

    name: str
    operator: str
    provider: str = Field(description="the execution provider that ran it")
    time_us: float
    share: float = Field(description="of the sum over all nodes, weighted by how often each ran")
    ran: float = Field(description="in which share of the runs; below 1 behind a branch")
    covers: tuple[str, ...] = Field(
        description="the file's nodes that it stands for, by name; empty: the runtime's own"
    )
    module: str | None = Field(description="torch's name for the module, where the file tells it")
    made_by: str | None = Field(default=None, description="the pass that last changed that module's layer, likewise")
    macs: int | None = Field(description="of the whole batch; None where a shape is not known")
    moved_bytes: int = Field(description="activations read and written, and weights read once")
    bound: Bound | None = Field(description="None where no peaks were given")


class NodeProfile(BaseModel, frozen=True, extra="forbid"):
    """All nodes, in the order they ran, and the whole run beside their sum."""

    path: Path
    runs: int
    run_us: float = Field(description="median of a whole run under the profiler")
    nodes: tuple[NodeTime, ...]
    providers: dict[str, int] = Field(description="how many nodes each provider ran")
    asked: tuple[str, ...] = Field(description="the providers that were asked for, the preferred one first")
    peaks: Peaks | None = None

    def fallback(self) -> list[NodeTime]:
        """The nodes that did not run where they were asked to: in another than the preferred provider."""
        return [node for node in self.nodes if node.provider != self.asked[0]]


def profile_nodes(
    file: DeviceFile,
    device: Device,
    inputs: Sequence[Array] | None = None,
    *,
    peaks: Peaks | None = None,
    seconds: float = 2.0,
    seed: int = 0,
) -> NodeProfile:
    """Run a file under the profiler in a fresh process.

    Args: device: whose providers run it. inputs: real samples, one array [n, ...] for each input. peaks: of this machine,
    to say what bounds each node. seconds: the most that running takes.

    Raises: TargetError where the target's runtime is another, the file cannot be run, or the process died.
    """
    if device.runtime != "onnxruntime":
        raise TargetError(
            f"target {device.name}: times by node are onnxruntime's, and this target runs {device.runtime}",
            do="name a target of onnxruntime",
        )
    if is_cascade(file.path):
        raise TargetError(f"{file.path}: a cascade is several files", do="name the stage's own .onnx file")
    with scratch_folder("nodes") as folder:
        job = Job(
            device=device,
            file=DeviceFile(file.path.resolve(), file.runtime),
            inputs=write_samples(inputs, folder),
            seed=seed,
            seconds=seconds,
            folder=folder,
        )
        text = run_apart(
            "targets.node_runs", job, folder, about=f"{file.path} under the profiler", limit_seconds=LIMIT_SECONDS
        )
        found = Found.model_validate_json(text)
        runs = read_events(json.loads(found.profile.read_text()), found.warm_up_runs)
        ran = None if found.optimized is None else onnx_ir.load(found.optimized)
        join = Join(onnx_ir.load(file.path), ran, found.batch)
        return _profile(file.path, runs, join, device.providers or (CPU,), peaks)


def _profile(path: Path, runs: Runs, join: Join, asked: tuple[str, ...], peaks: Peaks | None) -> NodeProfile:
    count = len(runs.run_us)
    weighed = [median(one.own_us) * len(one.own_us) / count for one in runs.nodes]
    total = math.fsum(weighed) or 1.0
    nodes = []
    for one, weight, covered in zip(runs.nodes, weighed, join.covered(runs.nodes), strict=True):
        macs, moved = join.macs(covered), one.activation_bytes + join.weight_bytes(covered)
        time_us = median(one.own_us)
        judged, module = None, join.module(covered)
        if peaks is not None and macs is not None and time_us > 0:
            int8 = "Integer" in one.operator or one.operator.startswith(("QLinear", "QGemm", "QConv"))
            judged = bound(macs, moved, time_us / 1e6, peaks, int8=int8)
        nodes.append(
            NodeTime(
                name=one.name,
                operator=one.operator,
                provider=one.provider,
                time_us=time_us,
                share=weight / total,
                ran=len(one.own_us) / count,
                covers=tuple(node.name or node.op_type for node in covered),
                module=module,
                made_by=join.made_by(module),
                macs=macs,
                moved_bytes=moved,
                bound=judged,
            )
        )
    return NodeProfile(
        path=path,
        runs=count,
        run_us=median(runs.run_us),
        nodes=tuple(nodes),
        providers=dict(Counter(one.provider for one in nodes)),
        asked=asked,
        peaks=peaks,
    )
