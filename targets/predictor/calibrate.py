"""Calibrating: peaks, noise, and as many sample graphs as the time allows; then the fit and its check on whole networks.

Graphs are timed some twenty at a time in fresh, pinned processes, in random interleaved blocks (`targets.worker`). One
reference network is in every process: graphs' times are kept as multiples of its own (`targets.predictor.clock`), and how
that differs from process to process is the drift of the machine. Whole networks are spread over all processes too, so that
what they are checked against was measured at the same time as what was learned from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from pydantic import BaseModel, Field
from scipy.stats import kendalltau

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from kdc.core.observe import Emit, Progress, silent
from kdc.core.scratch import scratch_folder
from targets.predictor import clock
from targets.predictor.calibration import Calibration, Check, check_supported, machine_of
from targets.predictor.fit import Measured, doubtful, fit
from targets.predictor.kernels import Kernel, read_kernels
from targets.predictor.peaks import measure_peaks, timer_ns
from targets.predictor.samples import WHOLE, reference, sample, whole
from targets.predictor.table import Table
from targets.site import watch

GRAPHS_OF_A_PROCESS = 20
NETWORKS = 2  # of these, whole and to check with
FIRST_SHARE = 0.6  # of the time, after which no new graph is begun
SECOND_SHARE = 0.8  # and none is measured again; what is left is for the fit
AGAIN_SHARE = 0.25  # of the graphs, measured again


class Effort(BaseModel, frozen=True, extra="forbid"):
    """How much to measure."""

    minutes: float = Field(default=5, gt=0)
    graphs_most: int = Field(default=960, ge=1)
    graphs_least: int = Field(default=100, ge=1)
    seed: int = 0


def calibrate(
    device: Device, effort: Effort | None = None, *, emit: Emit = silent, timer: clock.Timer | None = None
) -> Calibration:
    """Measure this machine with a device's runtime, and fit the table.

    Args: timer: what times the graphs; another one in tests.

    Raises: TargetError where the device's runtime is not ONNX Runtime, or the time does not suffice.
    """
    effort, timer = effort or Effort(), timer or clock.timed
    check_supported(device)
    start = time.monotonic()
    watching = watch(device)
    with scratch_folder("calibrate") as folder:
        peaks = measure_peaks(device, folder, timer)
        found = collect(device, folder, effort, emit=emit, timer=timer)
    table = fit(found.learned)
    checks = {family: check(table, networks) for family, networks in found.whole.items() if networks}
    everything = [network for networks in found.whole.values() for network in networks]
    return Calibration(
        device=device.name,
        machine=machine_of(device),
        peaks=peaks,
        timer_ns=timer_ns(),
        reference_ms=found.reference_ns / 1e6,
        run_noise=float(np.std(np.log(found.levels_ns))),
        ratio_noise=_spread(found.repeats),
        graphs=len(found.learned),
        seconds=round(time.monotonic() - start, 1),
        checks=checks | {"all": check(table, everything)},
        notes=tuple(watching.notes()),
        table=table,
    )


@dataclass(frozen=True)
class Collected:
    """What was measured: graphs to learn from, and whole networks to check with, by family.

    reference_ns: what the reference took in the middle of all processes, which all times are given at; levels_ns: in each
    process. repeats: logarithms of the ratio of networks' two measurements.
    """

    learned: list[Measured]
    whole: dict[str, list[Measured]]
    reference_ns: float
    levels_ns: list[float]
    repeats: list[float]


def collect(device: Device, folder: Path, effort: Effort, *, emit: Emit = silent, timer: clock.Timer) -> Collected:
    """Measure as many graphs as the time allows, and then those once more that the others confirm least.

    Raises: TargetError where the time does not suffice for the fewest graphs.
    """
    start, seconds = time.monotonic(), effort.minutes * 60
    groups = _Groups(device, folder, effort.seed, timer)
    learned: list[_Multiple] = []
    networks: dict[_Named, list[_Multiple]] = {}
    while len(learned) < effort.graphs_most and time.monotonic() - start < FIRST_SHARE * seconds:
        # each network in two processes in a row: how these differ is the noise of what is checked against
        first = len(groups.levels_ns) // 2 * NETWORKS
        names: list[_Named] = [(WHOLE[each % len(WHOLE)], each) for each in range(first, first + NETWORKS)]
        samples = range(len(learned), len(learned) + GRAPHS_OF_A_PROCESS - NETWORKS)
        measured = groups.measure([*names, *((None, index) for index in samples)])
        for name, network in zip(names, measured, strict=False):
            networks.setdefault(name, []).append(network)
        learned.extend(measured[NETWORKS:])
        emit(Progress("measuring kernels", min(len(learned), effort.graphs_most), effort.graphs_most, "graphs"))
    if len(learned) < effort.graphs_least:
        raise TargetError(
            f"only {len(learned)} graphs were measured in {effort.minutes:g} minutes, fewer than {effort.graphs_least}",
            do="give more time: --minutes",
        )
    again = doubtful([one.at(groups.reference_ns()) for one in learned], AGAIN_SHARE)
    for done in range(0, len(again), GRAPHS_OF_A_PROCESS):
        if time.monotonic() - start > SECOND_SHARE * seconds:
            break
        places = again[done : done + GRAPHS_OF_A_PROCESS]
        for place, other in zip(places, groups.measure([(None, place) for place in places]), strict=True):
            learned[place] = learned[place].joined(other)
        emit(Progress("measuring again", min(done + GRAPHS_OF_A_PROCESS, len(again)), len(again), "graphs"))
    at = groups.reference_ns()
    checked: dict[str, list[Measured]] = {family: [] for family in WHOLE}
    for (family, _), times in networks.items():
        checked[family or ""].append((times[0].joined(times[1]) if len(times) > 1 else times[0]).at(at))
    repeats = [math.log(times[1].times / times[0].times) for times in networks.values() if len(times) > 1]
    return Collected([one.at(at) for one in learned], checked, at, groups.levels_ns, repeats)


_Named = tuple[str | None, int]


@dataclass(frozen=True)
class _Multiple:
    """A graph's kernels, and how many times as long as the reference it takes."""

    kernels: tuple[Kernel, ...]
    times: float

    def at(self, reference_ns: float) -> Measured:
        return Measured(self.kernels, self.times * reference_ns)

    def joined(self, other: _Multiple) -> _Multiple:
        return _Multiple(self.kernels, clock.joined(self.times, other.times))


@dataclass(frozen=True)
class _Groups:
    """Measures some graphs in one process; a graph is named by its family (None for a sample) and its number."""

    device: Device
    folder: Path
    seed: int
    timer: clock.Timer
    levels_ns: list[float] = field(default_factory=list)

    def reference_ns(self) -> float:
        return median(self.levels_ns)

    def measure(self, named: Sequence[_Named]) -> list[_Multiple]:
        beside = self.folder / "reference.onnx"
        if not beside.exists():
            onnx.save(reference(), beside)
        paths = [self.folder / f"{index}.onnx" for index in range(len(named))]
        for path, (family, number) in zip(paths, named, strict=True):
            seed = (self.seed, number)
            onnx.save(sample(seed) if family is None else whole(family, seed), path)
        kernels = [read_kernels(path, self.device) for path in paths]
        files = [DeviceFile(path, self.device.runtime) for path in (*[beside] * clock.COPIES, *paths)]
        rounds = self.timer(files, self.device)
        self.levels_ns.append(clock.level(rounds) * 1e6)
        return [_Multiple(each, times) for each, times in zip(kernels, clock.multiples(rounds), strict=True)]


def _spread(repeats: Sequence[float]) -> float:
    """The relative spread of one measurement, from how much pairs of them differ; by their median, for outliers' sake."""
    # of a normal distribution's absolute values the median is 0.674 deviations, and a difference has two deviations in it
    return float(np.median(np.abs(repeats)) / 0.674 / math.sqrt(2)) if repeats else 0.0


def check(table: Table, networks: Sequence[Measured]) -> Check:
    """Hold estimates against measured times of networks that the table was not fitted to."""
    estimated = np.array([table.total_ns(network.kernels) for network in networks])
    times = np.array([network.ns for network in networks])
    errors = np.abs(estimated / times - 1)
    return Check(
        networks=len(networks),
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        # of fewer than two there is no order
        kendall_tau=float(kendalltau(estimated, times).statistic) if len(networks) > 1 else 1.0,
    )
