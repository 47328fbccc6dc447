"""Files that are built for one size of batch: how they run a batch of any other.

Some formats hold every size of every tensor. A model whose batch is free is then built for the device's batch, and more
samples are run that many at a time. A last part that is too small is filled up with its last sample, whose answers are
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdc.core.errors import TargetError
from targets.runtime import Array, Port


def fixed_shapes(
    inputs: Sequence[Port], outputs: Sequence[Port], batch: int, path: Path, runtime: str
) -> list[tuple[int, ...]]:
    """The inputs' shapes with the batch in place of a free first size. path, runtime: for the message.

    Raises: TargetError where another size is free, or the batch is free at some ends and fixed at others.
    """
    if len({is_free(port) for port in (*inputs, *outputs)}) > 1:
        raise TargetError(
            f"{path}: the batch is free in some of its inputs and outputs and fixed in others",
            do=f"export the model with all of them free, or all fixed, for {runtime}",
        )
    return [_fixed(port, batch, path, runtime) for port in inputs]


def in_batches(
    run: Callable[[Sequence[Array]], list[Array]],
    ports: Sequence[Port],
    outputs: Sequence[Port],
    inputs: Sequence[Array],
    batch: int,
    runtime: str,
) -> list[Array]:
    """Run any number of samples by something that takes `batch` of them, or what is fixed as it is.

    Args: run: takes one array for each port, sized as it was built. ports, outputs: what the model takes, in call order,
    and gives. An input without the free batch is given to every part as it is.

    Raises: TargetError where the arrays are not what the ports say, or parts would be needed and an output has no batch.
    """
    for port, array in zip(ports, inputs, strict=True):
        sizes = zip(port.shape, array.shape, strict=False)
        fits = array.ndim == len(port.shape) and all(isinstance(want, str) or want == got for want, got in sizes)
        if not fits or str(array.dtype) != port.dtype:
            takes = f"{port.dtype} {list(port.shape)}"
            raise TargetError(
                f"{runtime} cannot run the model: {port.name} takes {takes}, got {array.dtype} {list(array.shape)}"
            )
    free = [is_free(port) for port in ports]
    if not any(free):
        return run(inputs)
    counts = {len(array) for array, own in zip(inputs, free, strict=True) if own}
    if len(counts) != 1 or 0 in counts:
        raise TargetError(
            f"{runtime} cannot run the model: it takes as many samples at each input, got {sorted(counts)}"
        )
    count = counts.pop()
    if count == batch:
        return run(inputs)
    whole = [port.name for port in outputs if not is_free(port)]
    if whole:
        raise TargetError(
            f"{runtime} cannot run {count} samples by a program for {batch}: {', '.join(whole)} has no batch"
        )
    import numpy as np

    parts = []
    for start in range(0, count, batch):
        chosen = np.minimum(np.arange(start, start + batch), count - 1)
        answers = run([array[chosen] if own else array for array, own in zip(inputs, free, strict=True)])
        parts.append([answer[: count - start] for answer in answers])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def is_free(port: Port) -> bool:
    """Whether a port's first size is the free batch."""
    return bool(port.shape) and isinstance(port.shape[0], str)


def _fixed(port: Port, batch: int, path: Path, runtime: str) -> tuple[int, ...]:
    sizes = (batch, *port.shape[1:]) if is_free(port) else port.shape
    shape = tuple(size for size in sizes if isinstance(size, int))
    if len(shape) != len(sizes):
        raise TargetError(
            f"{path}: the input {port.name!r} is {list(port.shape)}, and {runtime} is built for sizes that are fixed",
            do="export the model with a free batch, or a fixed one, and all other sizes fixed",
        )
    return shape
