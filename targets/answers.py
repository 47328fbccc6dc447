"""What a file answers where the device is: to see that an artifact is right there, before asking how fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from targets.job import unpacked
from targets.process import Workplace
from targets.runtime import Array


def answers(file: DeviceFile, device: Device, inputs: Sequence[Array]) -> list[Array]:
    """Run a file on every input, in a fresh process on the device; an emulated processor's answers are right too.

    Args: inputs: one array [n, ...] for each of the model's inputs, in call order; n whole batches.

    Returns: one array [n, ...] for each output, in order.

    Raises: TargetError where the inputs do not fit, the file cannot be loaded or run, or the device cannot be reached.
    """
    with Workplace(inputs, device) as place:
        done = place.run(replace(place.job([file], device, (0,)), mode="answers"))
    return [unpacked(text) for text in done.answers]
