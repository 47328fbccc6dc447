"""Where a model's nodes are, on a target of several execution providers: what a provider lacks falls back, and is told.

ONNX Runtime gives the CPU what the profile's providers cannot take, and says nothing. Each file is looked at in a process
of its own, apart from those that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, Field

from kdc.core.device import Device
from kdc.core.devicefile import DeviceFile
from targets.job import LIMIT_SECONDS
from targets.onnxruntime import CPU, NAME
from targets.process import Workplace
from targets.runtime import Placed

UNKNOWN = "which nodes ran on which provider is not known: onnxruntime tells it from 1.24 on"


class Placement(BaseModel, frozen=True, extra="forbid"):
    """The nodes of one file, by provider; the one that was asked for first stands first."""

    asked: tuple[str, ...] = Field(description="the profile's providers, the preferred one first")
    nodes: dict[str, dict[str, int]] = Field(description="{provider: {operator: nodes}}, most first; empty: not known")

    def fallen(self) -> dict[str, dict[str, int]]:
        """What did not go to the preferred provider."""
        return {provider: operators for provider, operators in self.nodes.items() if provider != self.asked[0]}

    def sentence(self) -> str:
        """One line: how many nodes ran on which provider, and the operators that fell back."""
        if not self.nodes:
            return UNKNOWN
        counts = {provider: sum(operators.values()) for provider, operators in self.nodes.items()}
        total, there = sum(counts.values()), counts.get(self.asked[0], 0)
        preferred = _short(self.asked[0])
        if there == total:
            return f"nodes: all {total} on {preferred}"
        fallen = "; ".join(
            f"{counts[provider]} on {_short(provider)} ({_named(operators)})"
            for provider, operators in self.fallen().items()
        )
        return f"nodes: {there or 'none'} of {total} on {preferred}; fell back: {fallen}"


def placed_elsewhere(device: Device) -> bool:
    """Whether the device's nodes can be anywhere else than on the runtime's CPU."""
    return device.runtime == NAME and not {*device.providers} <= {CPU}


def placements(
    files: Sequence[DeviceFile],
    hashes: Sequence[str],
    device: Device,
    place: Workplace,
    limit_seconds: float = LIMIT_SECONDS,
) -> dict[str, Placement]:
    """Each file's placement by its hash; empty where the device has no provider but the CPU.

    Raises: TargetError where a provider is absent or does not start, a file cannot be loaded, or a process died.
    """
    found: dict[str, Placement] = {}
    if not placed_elsewhere(device):
        return found
    for file, sha256 in zip(files, hashes, strict=True):
        if sha256 not in found:
            job = replace(place.job([file], device, (0,)), mode="placement", limit_seconds=limit_seconds)
            found[sha256] = placement_of(place.run(job).placed, device)
    return found


def placement_of(placed: Sequence[tuple[str, str, int]], device: Device) -> Placement:
    """What a runtime told (`targets.runtime.Places`), in the order of the device's providers."""
    nodes: dict[str, dict[str, int]] = {provider: {} for provider in device.providers}
    for provider, operator, count in sorted((Placed(*one) for one in placed), key=lambda one: -one.nodes):
        nodes.setdefault(provider, {})[operator] = count
    return Placement(asked=device.providers, nodes={name: operators for name, operators in nodes.items() if operators})


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _named(operators: dict[str, int]) -> str:
    return ", ".join(operator if count == 1 else f"{count} {operator}" for operator, count in operators.items())
