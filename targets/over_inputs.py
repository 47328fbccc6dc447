"""Timing every input by itself: what a file that skips work takes for each, over the whole of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.errors import TargetError
from kdc.core.observe import Emit, Progress, silent
from kdc.core.spec import DeviceFile
from kdc.numerics.stats import REPEATS, Floats, Interval, percentile, ratio_interval
from targets.process import Workplace
from targets.runtime import Array

LIMIT_SECONDS = 4 * 3600.0  # for one process, which may have thousands of inputs to time


class InputTimes(BaseModel, frozen=True, extra="forbid"):
    """What every input takes at batch 1; `ms` is [file][process][input], each the median of the input's runs there."""

    paths: tuple[Path, ...]
    environment: dict[str, Any]
    notes: tuple[str, ...]
    ms: tuple[tuple[tuple[float, ...], ...], ...] = Field(repr=False)

    def of(self, file: int) -> Floats:
        """Each input's time in milliseconds, the median over processes: [n]."""
        return np.median(np.asarray(self.ms[file]), axis=0)  # type: ignore[no-any-return]

    def mean_ms(self, file: int) -> float:
        """The mean over the inputs: what a stream of such inputs takes, by their number."""
        return float(self.of(file).mean())

    def median_ms(self, file: int) -> float:
        """The median over the inputs."""
        return float(np.median(self.of(file)))

    def p95_ms(self, file: int) -> float | None:
        """What 95% of the inputs stay below; None with fewer than 200 inputs, which do not support it."""
        return percentile(self.of(file), 0.95)

    def ratio(
        self,
        numerator: int,
        denominator: int,
        numerator_inputs: Array | None = None,
        denominator_inputs: Array | None = None,
    ) -> Interval:
        """The ratio of two files' mean times, with its t interval over processes.

        Args: numerator, denominator: places in `paths`, which may be the same. numerator_inputs, denominator_inputs:
        the inputs that count for each, bool [n]; all where None.

        Raises: TargetError where a mask does not fit the inputs, or chooses none.
        """
        means = (self._means(numerator, numerator_inputs), self._means(denominator, denominator_inputs))
        return ratio_interval(np.log(means[0]) - np.log(means[1]))

    def _means(self, file: int, chosen: Array | None) -> Floats:
        """Each process's mean over the chosen inputs."""
        ms = np.asarray(self.ms[file])
        mask = np.ones(ms.shape[1], np.bool_) if chosen is None else np.asarray(chosen)
        if mask.dtype != np.bool_ or mask.shape != ms.shape[1:] or not mask.any():
            raise TargetError(
                f"the inputs are chosen by {mask.dtype} {list(mask.shape)}, of which {np.count_nonzero(mask)} are not 0",
                do=f"give bool [{ms.shape[1]}] with at least one True",
            )
        return ms[:, mask].mean(axis=1)  # type: ignore[no-any-return]


def over_inputs(
    files: Sequence[DeviceFile],
    device: Device,
    inputs: Sequence[Array],
    *,
    processes: int = 5,
    repeats: int = REPEATS,
    seed: int = 0,
    emit: Emit = silent,
) -> InputTimes:
    """Time every input at batch 1 with every file, in fresh processes: which inputs are dear, and how dear.

    In each process the files take turns on blocks of consecutive inputs, in random order; a block is run `repeats` times
    over, after a few runs that are discarded. The time grows with inputs * files * processes * repeats: give a part of
    the inputs where they are thousands.

    Args: inputs: one array [n, ...] for each of the models' inputs, in call order. processes: >= 2. repeats: >= 1. seed:
    of the order.

    Raises: TargetError where the inputs are none, of unequal number or do not fit, a file takes a batch other than 1,
    cannot be loaded or run, or a process died; ValueError where there is no file, or too few processes or repeats.
    """
    if not files or processes < 2 or repeats < 1:
        raise ValueError(f"{len(files)} files, {processes} processes and {repeats} repeats give no interval")
    counts = [len(array) for array in inputs]
    if not counts or min(counts) == 0 or len(set(counts)) > 1:
        raise TargetError(
            f"the models' inputs have {counts} samples", do="give the same number of samples for each, at least one"
        )
    found: list[tuple[tuple[int, ...], ...]] = []
    with Workplace(inputs, device) as place:
        watch = place.watch()
        for index in range(processes):
            job = replace(
                place.job(files, device, (seed, index), watch.quietest(device.threads)),
                mode="inputs",
                repeats=repeats,
                limit_seconds=LIMIT_SECONDS,
            )
            found.append(place.run(job).inputs_ns)
            emit(Progress("timing each input", index + 1, processes, "process"))
        described, watched = watch.environment(), watch.notes()
    return InputTimes(
        paths=tuple(file.path for file in files),
        environment={**described, "processes": processes},
        notes=tuple(watched),
        ms=tuple(tuple(tuple(ns / 1e6 for ns in process[index]) for process in found) for index in range(len(files))),
    )
