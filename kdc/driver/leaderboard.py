"""`kdc bench distill`: one student trained by every method with every seed, and the table that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file

from kdc.core.contract import named_seed
from kdc.core.errors import DataError, ModelError
from kdc.core.observe import Emit, Note, silent
from kdc.core.store import Store, key_of
from kdc.core.usercode import load_callable, source_fingerprint
from kdc.core.writing import discard, write_text
from kdc.distill.scripted import check_torchscript
from kdc.distill.settings import Training
from kdc.distill.sources import named_in
from kdc.driver import folder
from kdc.driver.bench_keys import libraries
from kdc.driver.inputs import load
from kdc.driver.methods import Method, methods
from kdc.driver.recipe import Recipe, lock_text
from kdc.driver.standings import Leaderboard, Row, judged
from kdc.driver.students import Start, Structure, narrowed
from kdc.driver.traits import Traits, traits_of
from kdc.driver.trial import JUDGED, Trial
from kdc.driver.trials import SCORES, THREADS, Jobs, Table

LEADERBOARD, LOCK = "leaderboard.json", "recipe.lock.yaml"


class Options(BaseModel, frozen=True, extra="forbid"):
    """What `kdc bench distill` can be told."""

    seeds: int = Field(default=5, ge=2)
    kinds: tuple[str, ...] | None = Field(default=None, description="see kdc.driver.methods; None: all objectives")
    epochs: int | None = Field(default=None, ge=1)
    keep_macs: float = Field(default=0.03, gt=0, le=1)
    start: Start = "fresh"
    student: str | None = Field(default=None, description="the user's own, as path.py:callable")
    beside: Literal["labels", "kd"] = "labels"
    pipelines: dict[str, dict[str, Any]] = {}
    try_weights: tuple[float, ...] = Field(default=(), description="factors of each method's weights to choose from")
    samples: int | None = Field(default=None, ge=1, description="of the training split; None: all")


def identity(recipe: Recipe) -> dict[str, str]:
    """What makes an output folder this leaderboard's."""
    return {
        "kind": "leaderboard",
        "teacher": recipe.teacher.build,
        "weights": str(recipe.teacher.weights),
        "data": str(recipe.data.load),
    }


def leaderboard(
    recipe: Recipe,
    options: Options,
    out: Path,
    jobs: int = 1,
    emit: Emit = silent,
    *,
    force: bool = False,
    allow_torchscript: bool = False,
) -> Leaderboard:
    """Train what is not stored yet, and judge.

    Args: jobs: trials at once, each in a process of its own; 1: in this one. force: overwrite a leaderboard.json that kdc
        did not write. allow_torchscript: whether TorchScript files may be called as teachers.
    Returns: the leaderboard, which is also written to `out`.
    Raises: UserError for the user's mistakes. A method that cannot be used with these models is none, and a fault of
        kdc's own in one method loses no other's trials: the row says why, and of a fault its `fault` shows the traceback.
    """
    if recipe.data.load is None:
        raise DataError(
            "a leaderboard is judged by labelled samples, and this recipe has none: its data are synthesised",
            do="give data.load",
        )
    competing = _competing(recipe, options, emit)
    check_torchscript(named_in(tuple(one.training for one in competing)), allow_torchscript)
    folder.check(out, identity(recipe), () if force else (LEADERBOARD,))
    inputs = load(recipe, allow_torchscript=allow_torchscript)
    with folder.opened(out, identity(recipe)) as private, one_thread():
        lock = private / LOCK
        discard(lock)
        write_text(lock, lock_text(recipe))
        table = Table(inputs, Store(private / folder.STORE, emit), options.samples)
        for note in inputs.data.notes:
            emit(Note(note))
        made = _Run(table, options, competing, Jobs(jobs, lock, emit), emit).made()
        folder.publish(out, {LEADERBOARD: made.model_dump_json(indent=1) + "\n"}, force=force)
        return made


def base_training(recipe: Recipe, epochs: int | None) -> Training:
    """The longest training of the recipe's passes, without its objectives and in one process.

    Args: epochs: in place of its own.
    """
    training = _longest(recipe)
    own = {"epochs": epochs or training.epochs, "objectives": Training().objectives, "processes": 1}
    return training.model_copy(update=own)


def _longest(recipe: Recipe) -> Training:
    found = [getattr(one, "training", None) for one in recipe.passes or ()]
    trainings = [one for one in found if isinstance(one, Training)]
    # Not the last pass's: quantize trains a little, and gently, what is already trained.
    return max(trainings, key=lambda one: one.epochs, default=Training())


def _competing(recipe: Recipe, options: Options, emit: Emit) -> list[Method]:
    """The methods, each in one process: a trial has one thread, and as many trials as are asked for run at once."""
    made = methods(base_training(recipe, options.epochs), options.kinds, options.beside, options.pipelines)
    most = max([_longest(recipe).processes, *(one.training.processes for one in made if one.training is not None)])
    if most > 1:
        emit(Note(f"each training runs in one process here, and not in {most} (training.processes): see --jobs"))
    return [replace(one, training=one.training and one.training.model_copy(update={"processes": 1})) for one in made]


@contextmanager
def one_thread() -> Iterator[None]:
    """A trial's sums are the same however many run at once, for each has one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    def __init__(self, table: Table, options: Options, competing: Sequence[Method], jobs: Jobs, emit: Emit) -> None:
        self.table, self.options, self.competing, self.jobs, self.emit = table, options, competing, jobs, emit
        self.seeds = tuple(table.inputs.recipe.seed + number for number in range(options.seeds))
        self.structure = self._structure()

    def made(self) -> Leaderboard:
        """All trials, then the judgement."""
        faults: dict[str, str] = {}
        factors, tried = self._chosen_factors(faults)
        trials = {
            method.name: [self._trial(method, factors[method.name], seed) for seed in self.seeds]
            for method in self.competing
            if method.training is not None
        }
        faults |= self.jobs.run(self.table, [trial for own in trials.values() for trial in own])
        rows, scores, seconds = [], {}, 0.0
        for method in self.competing:
            row, own, took = self._row(method, factors.get(method.name, 1.0), trials.get(method.name, []), faults)
            rows.append(row)
            seconds += took
            if own is not None:
                scores[method.name] = own
        done, choice = judged(rows, scores)
        return Leaderboard(
            name=self._name(),
            metric=self.table.inputs.task.metric,
            traits=self._traits(),
            seeds=self.seeds,
            options=self.options.model_dump(mode="json"),
            training=base_training(self.table.inputs.recipe, self.options.epochs).model_dump(
                mode="json", exclude={"objectives", "checkpoint_seconds"}
            ),
            factors=tried,
            rows=done,
            choice=choice,
            environment={"libraries": libraries(), **{k: self.table.root[k] for k in ("teacher", "data")}},
            seconds=round(seconds, 1),
        )

    def _structure(self) -> Structure:
        inputs, build = self.table.inputs, self.options.student
        if build is not None:
            return Structure(
                build=build, source=source_fingerprint(load_callable(build, Path.cwd(), "student", ModelError))
            )
        bench = self.table.bench
        notes: list[str] = []
        context = bench.context(inputs.recipe.seed, bench.cache, bench.cache, inputs.teacher.model, notes)
        found = narrowed(inputs.teacher, context, self.options.keep_macs)
        for note in notes:
            self.emit(Note(note))
        return found

    def _trial(self, method: Method, factor: float, seed: int) -> Trial:
        return Trial(
            name=method.name,
            training=method.weighted(factor),
            teacher=method.teacher,
            seed=seed,
            start=self.options.start,
            structure=self.structure,
        )

    def _chosen_factors(self, faults: dict[str, str]) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
        """Each method's factor with the best validation points, with one seed that is none of the table's.

        Every method that has a weight to choose gets the same trials, plain KD and the controls too.
        """
        factors = {method.name: 1.0 for method in self.competing}
        if not self.options.try_weights:
            return factors, {}
        seed = named_seed(self.table.inputs.recipe.seed, "weights")
        grid = sorted({1.0, *self.options.try_weights}, key=lambda factor: (abs(np.log(factor)), factor))
        tuned = [method for method in self.competing if method.tunable]
        trials = {(m.name, factor): self._trial(m, factor, seed) for m in tuned for factor in grid}
        faults |= self.jobs.run(self.table, list(trials.values()))
        tried: dict[str, dict[str, float | None]] = {}
        for method in tuned:
            points: dict[float, float] = {}
            for factor in grid:
                entry = self.table.find(trials[method.name, factor])
                if entry is not None and "failed" not in entry.record:
                    points[factor] = 100 * float(load_file(entry.file(SCORES))["validation"].mean())
            tried[method.name] = {f"{factor:g}": points.get(factor) for factor in grid}
            if points:
                factors[method.name] = max(points, key=lambda factor: points[factor])  # of equal ones the nearest to 1
        return factors, tried

    def _row(
        self, method: Method, factor: float, trials: Sequence[Trial], faults: Mapping[str, str]
    ) -> tuple[Row, dict[str, np.ndarray[Any, Any]] | None, float]:
        """The method's row without figures, its scores by split, and the seconds that its trials took."""
        base = base_training(self.table.inputs.recipe, self.options.epochs).model_dump(mode="json")
        training = method.weighted(factor).model_dump(mode="json") if method.training is not None else {}
        own = {key: value for key, value in training.items() if key != "objectives" and value != base.get(key)}
        row = Row(
            name=method.name,
            role=method.role,
            teacher=method.teacher,
            objectives=tuple(training.get("objectives", ())),
            training=own,
            factor=factor,
            failed=method.refused,
        )
        if method.refused is not None:
            return row, None, 0.0
        entries = []
        for trial in trials:
            entry = self.table.find(trial)
            if entry is None:
                fault = faults.get(key_of(self.table.parts(trial)), "it was not run")
                update = {"failed": fault.strip().splitlines()[-1], "fault": fault}
                return row.model_copy(update=update), None, 0.0
            entries.append(entry)
        refused = [str(entry.record["failed"]) for entry in entries if "failed" in entry.record]
        if refused:
            of = "" if len(refused) == len(entries) else f"{len(refused)} of {len(entries)} seeds: "
            return row.model_copy(update={"failed": of + refused[0].splitlines()[0]}), None, 0.0
        files = [load_file(entry.file(SCORES)) for entry in entries]
        scores = {split: np.stack([file[split].double().numpy() for file in files]) for split in JUDGED}
        of_metrics = [entry.record["metrics"] for entry in entries]
        metrics = {
            split: {name: float(np.mean([m[split][name] for m in of_metrics])) for name in of_metrics[0][split]}
            for split in JUDGED
        }
        took = [float(entry.record["seconds"]) for entry in entries]
        done = {"metrics": metrics, "notes": tuple(entries[0].record["notes"]), "seconds": float(np.mean(took))}
        return row.model_copy(update=done), scores, sum(took)

    def _traits(self) -> Traits:
        bench = self.table.bench
        model = bench.student(self.structure, self.options.start, self.seeds[0])
        answers = torch.from_numpy(bench.answers("validation"))
        return traits_of(bench.teacher, bench.teacher.with_model(model), bench.data, bench.task, answers)

    def _name(self) -> str:
        return Path(str(self.table.inputs.recipe.data.load).rpartition(":")[0]).parent.name or "data"
