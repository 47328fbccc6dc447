"""Which pass last changed each layer, as an ONNX file tells it.

A file holds one text about it, `kdc.passes` among its metadata: JSON, {layer's name in torch: pass}. A layer that is not
named is the teacher's own. It stands with the model, not with its nodes, for those are fused and renamed on their way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import onnx_ir

KEY = "kdc.passes"

Origins = tuple[tuple[str, str], ...]
"""Layers with the pass that last changed each, in the layers' order."""

# What a cascade's file puts before the names of a stage's layers (`passes.export.branches`).
_OF_STAGE = re.compile(r"^stage_\d+\.(?:stage\.)?")


def write_origins(model: onnx_ir.Model, origins: Mapping[str, str]) -> None:
    """Write down, in place, which pass each layer is of; nothing where nothing is known."""
    if origins:
        model.metadata_props[KEY] = json.dumps(dict(sorted(origins.items())), separators=(",", ":"))


def origins_of(model: onnx_ir.Model) -> dict[str, str]:
    """What `write_origins` wrote; empty where a file does not tell, or something else stands there."""
    try:
        found = json.loads(model.metadata_props.get(KEY, "{}"))
    except ValueError:
        return {}
    return {str(name): str(one) for name, one in found.items()} if isinstance(found, dict) else {}


def origin_of(layer: str, origins: Mapping[str, str]) -> str | None:
    """The pass of a layer, or of the nearest module around it; None where neither is named."""
    for name in (layer, _OF_STAGE.sub("", layer)):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            found = origins.get(".".join(parts[:length]))
            if found is not None:
                return found
    return None
