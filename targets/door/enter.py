"""All files of one command through the door, with the user's shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kdc.core.errors import TargetError
from kdc.core.scratch import scratch_folder
from targets.door.admit import admit
from targets.door.examine import ask_for_shapes, examine
from targets.door.shapes import Shape, fix_shapes


@contextlib.contextmanager
def entered(
    paths: Sequence[Path], shapes: Mapping[str, Shape] | None = None, *, real_inputs: bool = False
) -> Iterator[list[Path]]:
    """Examine ONNX files and cascades of them, and give the files to measure: copies where shapes are fixed.

    Other kinds of files pass unseen: their own runtime judges them.

    Args: real_inputs: whether samples are given, so that they tell the free sizes.

    Raises: TargetError where a file is bad, a shape does not fit, or a size is free and nothing tells it; and what is
    raised while the files are measured, with the files given in place of their copies.
    """
    shapes = shapes or {}
    with scratch_folder("shapes") as folder:
        found = []
        for index, path in enumerate(paths):
            examined = None if path.suffix.lower() in _OTHERS else admit(path)
            if examined is None:
                found.append(path)
            else:
                place = folder / str(index)
                place.mkdir()
                fixed = fix_shapes(examined, path, shapes, place)
                if not real_inputs:
                    ask_for_shapes(path, examined.inputs if fixed == path else examine(fixed).inputs)
                found.append(fixed)
        try:
            yield found
        except TargetError as error:
            text = str(error)
            for path, copy in zip(paths, found, strict=True):
                for place in (copy, copy.resolve()):  # by that name it was given to a process
                    text = text.replace(str(place), str(path)) if copy != path else text
            if text == str(error):
                raise
            raise TargetError(text) from error


# What other runtimes load, and ONNX Runtime's own format.
_OTHERS = frozenset(
    {".ort", ".xml", ".engine", ".plan", ".trt", ".pte", ".tflite", ".param", ".mnn", ".mlpackage", ".zip", ".so"}
)
