"""The one way in for an ONNX file of the user's: every verb that reads one calls `admit` before anything else opens it.

A file that other runtimes load is none of it; an ONNX file under such a file's name is.
"""

from __future__ import annotations

from pathlib import Path

from targets.cascade import is_cascade, stage_files
from targets.door.examine import Examined, examine, read_model
from targets.door.weights import check_weights


def admit(path: Path) -> Examined | None:
    """Examine an ONNX file, or every stage of a cascade (None); see `targets.door.examine`.

    Raises: TargetError where a file is missing, damaged or could not run, or where its weights lie outside its folder.
    """
    if not is_cascade(path):
        return examine(path)
    for stage in stage_files(path)[1:]:
        examine(stage)
    return None


def files_of(path: Path) -> tuple[Path, ...]:
    """An ONNX file, and the files beside it that its weights lie in: constants' and those of bodies and functions too.

    Raises: TargetError where it is none, or a weight is missing or lies outside its folder.
    """
    return (path, *check_weights(read_model(path), path))
