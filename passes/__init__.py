"""The passes, one a file or a folder. This list is the one place where they are known by name."""

from __future__ import annotations

from typing import Any

from kdc.core.contract import Pass
from kdc.core.device import Device
from passes.build import Build
from passes.distill import Distill
from passes.export import Export
from passes.prune import Prune
from passes.quantize import Quantize
from passes.route import Route
from passes.search import Search
from passes.simplify import Simplify

PASSES: dict[str, type[Pass[Any]]] = {
    p.kind: p for p in (Search, Prune, Distill, Quantize, Route, Export, Simplify, Build)
}
LOWERING: tuple[type[Pass[Any]], ...] = (Export, Simplify, Build)


def default_passes(device: Device) -> list[Pass[Any]]:
    """What a recipe without `passes` gets: pruning, and integers where the device is fast in them."""
    return [Prune(), *([Quantize()] if device.quantization is not None else [])]
