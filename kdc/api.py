"""The Python API: what the command line does, with typed values in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.core.observe import Emit, silent
from kdc.core.user_frames import exits_refused
from kdc.driver import compress as driver
from kdc.driver.recipe import Recipe, load_recipe
from kdc.driver.report import Report
from kdc.driver.steps import Kept
from passes import PASSES
from targets.device import load_device
from targets.measure import Settings, compare
from targets.measured import Comparison
from targets.parts import ready


def compress(
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    emit: Emit = silent,
    kept: Kept | None = None,
    force: bool = False,
    allow_torchscript: bool = False,
) -> Report:
    """Run a recipe into the folder `out`, or go on with it where it stopped.

    Args: recipe: a recipe's file, or the value. overrides: dotted keys, such as {"budget.max_drop": 0.5}.
        kept: where and how much of the teacher's answers is kept; it changes no result.
        force: overwrite files in `out` that kdc did not write, where a result belongs.
        allow_torchscript: whether TorchScript files in `training.teachers` may be called: they can write files.
    Returns: the report; `report.met` says whether the whole budget is met (else the nearest student is kept).
    Raises: KdcError; its subclasses say whose mistake it was (see kdc/core/errors.py).
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe), overrides or {}, [], PASSES)
    with exits_refused():
        return driver.compress(recipe, Path(out), emit, kept, force=force, allow_torchscript=allow_torchscript)


def profile(
    file: str | Path,
    against: str | Path | None = None,
    *,
    target: str = "cpu-ort",
    device: str | None = None,
    settings: Settings | None = None,
) -> Comparison:
    """Time an ONNX file, or one that the target's runtime loads, on a target, alone or interleaved with another.

    Args: device: where to measure, ssh://user@host[:port] or adb://serial; here where None.

    Raises: TargetError where the file is not there, the runtime cannot load it, or the device cannot be reached.
    """
    measured = load_device(target, device)
    baseline = None if against is None else ready(Path(against), measured)
    return compare(ready(Path(file), measured), baseline, measured, None, settings or Settings())
