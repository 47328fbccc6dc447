"""Run a model in stages that answers as early as it is sure.

The folder that this file lies in holds the stages (`stage-1.onnx`, ...) and `cascade.json`, which says how they belong
together. Every sample goes through stage 1. Where the model's confidence (the largest softmax probability) reaches the
stage's threshold, its answer is taken; only the other samples go on to the next stage.

    python run_cascade.py inputs.npz --out outputs.npz

`inputs.npz` holds one array [n, ...] for each input, by the input's name or by its place ("0", "1", ...). `outputs.npz`
gets the answers, logits [n, classes], and for each sample the exit that it took, [n], 0 being the first. In Python:

    cascade = load("folder")
    logits, exits = cascade.run([images])

This file needs numpy and onnxruntime, and nothing else. Copy it, and change it, as you like.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Stage = Callable[[Sequence[Array]], Sequence[Array]]

PLAN = "cascade.json"
SCHEMA_VERSION = 1


class Cascade:
    """Stages and the plan by which they are run.

    Args: stages: each takes its inputs' arrays [n, ...] in the plan's order, and gives its outputs' in the plan's order.
    plan: the content of cascade.json.
    """

    def __init__(self, stages: Sequence[Stage], plan: dict[str, Any]) -> None:
        self.stages, self.plan = tuple(stages), plan
        steps = plan["stages"]
        # What is still read behind each stage: the rest is dropped when samples go on.
        self._needed = [
            {name for later in steps[place + 1 :] for name in later["inputs"]} for place in range(len(steps))
        ]

    def run(self, inputs: Sequence[Array]) -> tuple[Array, Array]:
        """Answer a batch of any size.

        Args: inputs: one array [n, ...] for each input, in the plan's order.

        Returns: logits [n, classes], and the exit that each sample took [n], int64, 0 is the first.
        Raises: ValueError where their number or their lengths do not fit.
        """
        names = self.plan["inputs"]
        lengths = {len(array) for array in inputs}
        if len(inputs) != len(names) or len(lengths) != 1:
            shapes = [list(array.shape) for array in inputs]
            raise ValueError(f"takes {len(names)} arrays of one length, for {', '.join(names)}; got {shapes}")
        values = dict(zip(names, inputs, strict=True))
        waiting = np.arange(lengths.pop())  # the samples that have no answer yet
        exits = np.zeros(len(waiting), np.int64)
        answers: Array | None = None
        for place, (stage, step) in enumerate(zip(self.stages, self.plan["stages"], strict=True)):
            given = stage([values[name] for name in step["inputs"]])
            values.update(zip(step["outputs"], given, strict=True))
            logits = values[step["logits"]]
            if "threshold" in step:
                sure = values[step["confidence"]] >= np.float32(step["threshold"])
            else:
                sure = np.ones(len(waiting), np.bool_)
            if answers is None:
                answers = np.empty((len(exits), *logits.shape[1:]), logits.dtype)
            answers[waiting[sure]] = logits[sure]
            exits[waiting[sure]] = place
            if sure.all():
                break
            on = ~sure
            waiting = waiting[on]
            values = {
                name: values[name] if on.all() else values[name][on] for name in values.keys() & self._needed[place]
            }
        assert answers is not None
        return answers, exits


def read(path: Path) -> dict[str, Any]:
    """The plan in a cascade.json, whose files were seen to be those that it names.

    Raises: ValueError where one is missing or was changed, or this is no plan, or one of another version.
    """
    try:
        plan: dict[str, Any] = json.loads(path.read_text())
        version = plan["schema_version"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: is not a cascade's plan ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: is of version {version}, this program reads {SCHEMA_VERSION}")
    for stage in plan["stages"]:
        file = path.parent / stage["file"]
        if Path(stage["file"]).name != stage["file"] or file.is_symlink():
            raise ValueError(f"{path}: names {stage['file']!r}, which is no file of its own folder")
        if not file.is_file():
            raise ValueError(f"{file}: there is no such file, and {path.name} names it")
        if hashlib.sha256(file.read_bytes()).hexdigest() != stage["sha256"]:
            raise ValueError(f"{file}: was changed since {path.name} was written (its SHA-256 is another)")
    return plan


def load(folder: Path | str, threads: int = 1) -> Cascade:
    """The cascade in a folder, on onnxruntime's CPU, each stage with this number of threads.

    Raises: ValueError where a file is missing or was changed.
    """
    folder = Path(folder)
    plan = read(folder / PLAN)
    return Cascade([_session(folder / stage["file"], stage, threads) for stage in plan["stages"]], plan)


def _session(path: Path, step: dict[str, Any], threads: int) -> Stage:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: ONNX Runtime would look up an event host
    import onnxruntime  # here, so that Cascade serves other runtimes too

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Array]) -> Sequence[Array]:
        outputs: list[Array] = session.run(step["outputs"], dict(zip(step["inputs"], inputs, strict=True)))
        return outputs

    return run


def _arrays(path: Path, names: Sequence[str]) -> list[Array]:
    with np.load(path, allow_pickle=False) as found:
        keys = [name if name in found else str(place) for place, name in enumerate(names)]
        missing = [name for name, key in zip(names, keys, strict=True) if key not in found]
        if missing:
            raise ValueError(f"{path}: has no array for {', '.join(missing)}; it has {', '.join(found)}")
        arrays = [found[key] for key in keys]
    if not all(array.ndim and len(array) for array in arrays):
        raise ValueError(f"{path}: has no samples")
    return arrays


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a model in stages that answers as early as it is sure.")
    parser.add_argument("inputs", type=Path, help="an .npz file: arrays by the inputs' names, or 0, 1, ...")
    parser.add_argument("--out", type=Path, help="an .npz file to write: the answers, and the exit of each sample")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help=f"where {PLAN} lies (here)")
    parser.add_argument("--batch", type=int, default=256, help="samples that are run together (256)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each stage (1)")
    options = parser.parse_args(arguments)
    try:
        cascade = load(options.folder, options.threads)
        inputs = _arrays(options.inputs, cascade.plan["inputs"])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    starts = range(0, len(inputs[0]), max(1, options.batch))
    done = [cascade.run([array[start : start + starts.step] for array in inputs]) for start in starts]
    logits, exits = (np.concatenate(parts) for parts in zip(*done, strict=True))
    if options.out is not None:
        np.savez(options.out, **dict(zip(cascade.plan["outputs"], (logits, exits), strict=True)))
    counts = np.bincount(exits, minlength=len(cascade.stages))
    took = ", ".join(f"exit {place}: {count}" for place, count in enumerate(counts))
    print(f"{len(exits)} samples; {took}")


if __name__ == "__main__":
    main()
