"""What a measuring process does with a stream: chunk after chunk through one file, its states carried along.

Paced, each chunk is processed when it is due, and until then the process sleeps: the caches, the clock and the system's
timer are as in the application that waits for its microphone. Back to back there is no waiting.

A remote device runs this file too: Python, numpy and the runtime are all there is.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import numpy as np

from kdc.core.errors import TargetError
from targets.job import Done, Job, device_of
from targets.runtime import Array, Engine, Port, batches_for, runtime_of
from targets.states import State, states_of

CHUNKS_LEAST = 3  # timed, however long one takes
CHUNKS_HELD = 4096  # different chunks that are fed in turn
WARM_UP_SECONDS = 0.2
WARM_UP_CHUNKS = 100


class Stream:
    """A loaded file with its chunks and the states that it gave last."""

    def __init__(self, engine: Engine, states: Sequence[State], chunks: Sequence[Sequence[Array]], batch: int) -> None:
        carried = {state.input for state in states}
        self._fed = [place for place in range(len(engine.inputs)) if place not in carried]
        self._engine, self._states, self._chunks = engine, states, chunks
        self._call: list[Array] = [
            _zeros(port, batch) if place in carried else chunks[0][self._fed.index(place)]
            for place, port in enumerate(engine.inputs)
        ]

    def step(self, position: int) -> None:
        """Run the chunk at this place, and keep the states for the next call."""
        call = self._call
        for place, array in zip(self._fed, self._chunks[position % len(self._chunks)], strict=True):
            call[place] = array
        outputs = self._engine.run(call)
        for state in self._states:
            call[state.input] = outputs[state.output]

    def first(self) -> None:
        """Run the first chunk.

        Raises: TargetError where a state comes back as it cannot be given again.
        """
        before = list(self._call)
        self.step(0)
        for state in self._states:
            given, taken = self._call[state.input], before[state.input]
            if given.shape != taken.shape or given.dtype != taken.dtype:
                raise TargetError(
                    f"the state {self._engine.outputs[state.output].name!r} came back as {given.dtype} "
                    f"{list(given.shape)}, and was given as {taken.dtype} {list(taken.shape)}",
                    do="a state keeps its shape: name the right one by --state OUTPUT=INPUT, or fix its sizes by --shape",
                )

    def forget(self) -> None:
        """States as at a stream's start: zeros."""
        for state in self._states:
            self._call[state.input] = np.zeros_like(self._call[state.input])

    def broken(self) -> list[str]:
        """The states that are no numbers any more."""
        return [
            self._engine.outputs[state.output].name
            for state in self._states
            if not np.all(np.isfinite(self._call[state.input]))
        ]


def stream(job: Job, samples: list[Array] | None) -> Done:
    """Time chunk after chunk of one file, from zero states on.

    Raises: TargetError where the states or the samples do not fit the file.
    """
    device = device_of(job.device)
    runtime = runtime_of(device)
    runtime.prepare()
    start = time.perf_counter_ns()
    engine = runtime.load(job.files[0], device)
    load_ns = time.perf_counter_ns() - start
    states = states_of(engine.inputs, engine.outputs, job.states)
    chunks = _chunks(engine, states, samples, device.batch, np.random.default_rng(job.seed))
    one = Stream(engine, states, chunks, device.batch)
    start = time.perf_counter_ns()
    one.first()
    first_ns = time.perf_counter_ns() - start
    warm_up(one.step)
    one.forget()
    gc.collect()
    gc.freeze()
    gc.disable()
    spent_ns, answered_ns = run_chunks(one.step, job.chunk_ns if job.paced else 0, job.slice_seconds)
    return Done(
        spent_ns=tuple(spent_ns),
        answered_ns=tuple(answered_ns),
        load_ns=load_ns,
        first_ns=first_ns,
        states=tuple((engine.outputs[state.output].name, engine.inputs[state.input].name) for state in states),
        broken=tuple(one.broken()),
    )


def warm_up(step: Callable[[int], None]) -> None:
    """Run chunks for `WARM_UP_SECONDS`, at most `WARM_UP_CHUNKS`."""
    end = time.monotonic() + WARM_UP_SECONDS
    for position in range(WARM_UP_CHUNKS):
        step(position)
        if time.monotonic() >= end:
            break


def run_chunks(
    step: Callable[[int], None],
    chunk_ns: int,
    seconds: float,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[int], list[int]]:
    """Run chunks until the time is over, and at least `CHUNKS_LEAST`.

    Chunk k is due at k * chunk_ns, and is begun then, or as soon as the one before it is done: none is left out, so that
    one who is too slow falls behind more and more. With 0 each is due when the one before it is done.

    Returns: for each chunk the nanoseconds that it took, and those from when it was due until it was done.
    """
    spent, answered = list[int](), list[int]()
    start = clock()
    while True:
        due = start + len(spent) * chunk_ns
        now = clock()
        if len(spent) >= CHUNKS_LEAST and max(now, due) - start >= seconds * 1e9:
            break
        wait = due - now
        if wait > 0:
            sleep(wait / 1e9)
        begin = clock()
        step(len(spent))
        end = clock()
        spent.append(end - begin)
        answered.append(end - (due if chunk_ns else begin))
    return spent, answered


def _chunks(
    engine: Engine, states: Sequence[State], samples: list[Array] | None, batch: int, generator: np.random.Generator
) -> list[list[Array]]:
    carried = {state.input for state in states}
    fed = [port for place, port in enumerate(engine.inputs) if place not in carried]
    if samples is not None and len(samples) != len(fed):
        raise TargetError(
            f"the stream feeds {', '.join(port.name for port in fed)}, and the samples have {len(samples)} arrays",
            do="give an array of chunks for each of these, in this order; states begin as zeros",
        )
    return batches_for(fed, samples, batch, generator, CHUNKS_HELD)


def _zeros(port: Port, batch: int) -> Array:
    """A state at a stream's start. A free size of a state is the batch, wherever it stands; what comes back tells."""
    return np.zeros([size if isinstance(size, int) else batch for size in port.shape], port.dtype)
