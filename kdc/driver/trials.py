"""The leaderboard's trials: each kept in the store under a key of all that could change it, several run at once.

A run that was killed goes on; a new objective costs its own trials only. Each trial has one thread, in this process or in
one of several, so that their number changes no result.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from kdc.core.contract import named_seed
from kdc.core.errors import DataError, ModelError
from kdc.core.observe import Emit, Note, Progress
from kdc.core.store import KEY_DIGITS, Entry, Parts, Store, key_of
from kdc.core.weights import save_weights
from kdc.distill.sources import named_in, source_digest
from kdc.driver.bench_keys import libraries, sources
from kdc.driver.inputs import Inputs, load
from kdc.driver.keys import root_parts
from kdc.driver.recipe import load_recipe
from kdc.driver.sources import digests
from kdc.driver.trial import JUDGED, Bench, Trial, run
from passes import PASSES
from targets.machine import end_with_parent

SCORES = "scores.safetensors"
THREADS = 1  # of a trial


class Table:
    """The trials of one recipe in their store; every process has one."""

    def __init__(self, inputs: Inputs, store: Store, samples: int | None) -> None:
        data = inputs.data
        if samples is not None and samples < len(data.train):
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(named_seed("samples")))
            data = replace(data, train=data.train[order[:samples]], fingerprint=f"{data.fingerprint} of {samples}")
        self.inputs, self.store = replace(inputs, data=data), store
        self.root = {**root_parts(self.inputs), "task": inputs.task.name, "libraries": libraries()}
        cache = store.root / "cache" / key_of({**self.root, "source": digests("kdc.distill.teacher")})[:KEY_DIGITS]
        self.bench = Bench(inputs.teacher, data, inputs.task, inputs.device, cache)

    def parts(self, trial: Trial) -> Parts:
        """All that could change the trial's result."""
        settings = trial.model_dump(mode="json", exclude={"name"})
        teachers = [source_digest(one, trial.seed) for one in named_in(trial.training)]
        named: Parts = {"teachers": teachers} if teachers else {}
        return {**self.root, **named, "trial": settings, "source": sources(trial, self.inputs.task), "threads": THREADS}

    def find(self, trial: Trial) -> Entry | None:
        """The stored trial."""
        return self.store.find(_step(trial), key_of(self.parts(trial)))

    def work(self, trial: Trial) -> Entry:
        """The trial, from the store or made now. One that an objective or a strategy refuses is stored with the reason."""
        entry = self.find(trial)
        if entry is not None:
            return entry
        parts = self.parts(trial)
        work = self.store.work(key_of(parts))
        work.mkdir(parents=True, exist_ok=True)
        try:
            scored = run(trial, self.bench, work)
        except (ModelError, DataError) as error:
            return self.store.write(_step(trial), parts, {"failed": str(error)}, {})
        except BaseException as error:
            self.store.fail(_step(trial), parts, error)
            raise
        record = {"metrics": scored.metrics, "notes": scored.notes, "seconds": round(scored.seconds, 2)}
        return self.store.write(_step(trial), parts, record, {SCORES: partial(save_weights, scored.scores)})


def _step(trial: Trial) -> str:
    # The same training has one folder, whatever it is called.
    kinds = "+".join(one.kind for one in trial.training.objectives)
    return re.sub(r"[^\w.+-]", "_", f"{kinds}-{trial.teacher}-{trial.seed}")


_own: list[Table] = []  # a worker's own table


def _begin(lock: str, root: str, samples: int | None) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(THREADS)
    recipe = load_recipe(Path(lock), {}, [], PASSES)
    _own[:] = [Table(load(recipe), Store(Path(root)), samples)]


def _one(trial: str) -> str:
    """An empty text, or the traceback of a fault."""
    try:
        _own[0].work(Trial.model_validate_json(trial))
    except Exception:
        return traceback.format_exc()
    return ""


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that are started inside never see a Ctrl-C, not even while they still import: this one ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Jobs:
    """How trials are run."""

    count: int
    lock: Path
    emit: Emit

    def run(self, table: Table, trials: Sequence[Trial]) -> dict[str, str]:
        """Run all trials. Returns: {key: traceback} of those that failed by a fault."""
        unlike = {key_of(table.parts(trial)): trial for trial in trials}
        waiting = {key: trial for key, trial in unlike.items() if table.find(trial) is None}
        faults: dict[str, str] = {}
        done = len(unlike) - len(waiting)
        self._told(done, len(unlike))
        ways = self._in_processes if self.count > 1 and len(waiting) > 1 else self._here
        for key, fault in ways(table, waiting):
            done += 1
            trial = waiting[key]
            if fault:
                faults[key] = fault
                self.emit(Note(f"{trial.name}, seed {trial.seed}: {fault.strip().splitlines()[-1]}"))
            else:
                self.emit(Note(f"{trial.name}, seed {trial.seed}: {_words(table.find(trial))}"))
            self._told(done, len(unlike))
        return faults

    def _told(self, done: int, total: int) -> None:
        self.emit(Progress("trainings", done, total, "trainings"))

    def _here(self, table: Table, waiting: Mapping[str, Trial]) -> Iterator[tuple[str, str]]:
        _own[:] = [table]
        for key, trial in waiting.items():
            yield key, _one(trial.model_dump_json())

    def _in_processes(self, table: Table, waiting: Mapping[str, Trial]) -> Iterator[tuple[str, str]]:
        samples = len(table.inputs.data.train)
        pool = ProcessPoolExecutor(
            min(self.count, len(waiting)),
            multiprocessing.get_context("spawn"),
            _begin,
            (str(self.lock), str(table.store.root), samples),
        )
        keys: dict[Future[str], str] = {}
        try:
            with _without_ctrl_c():
                keys = {pool.submit(_one, trial.model_dump_json()): key for key, trial in waiting.items()}
            left = set(keys)
            while left:
                ended, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield keys[future], future.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()  # its checkpoint is on disk
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _words(entry: Entry | None) -> str:
    assert entry is not None
    if "failed" in entry.record:
        return str(entry.record["failed"]).splitlines()[0]
    shown = ", ".join(f"{split} {next(iter(entry.record['metrics'][split].values())):.2f}" for split in JUDGED)
    return f"{shown}, {entry.record['seconds']:.1f} s"
