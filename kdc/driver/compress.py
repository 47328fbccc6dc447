"""The main job: a recipe in, a proven student and its report out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from kdc.core.budget import Verdict
from kdc.core.contract import named_seed
from kdc.core.errors import BudgetError, ModelError
from kdc.core.observe import Emit, Note, silent
from kdc.core.store import Store, key_of
from kdc.distill.sources import files, named_in
from kdc.driver import folder
from kdc.driver.clock import EVALUATE, RUN, Clock
from kdc.driver.evaluate import Array
from kdc.driver.inputs import Inputs, read
from kdc.driver.keys import measuring_parts
from kdc.driver.limits import Judged, check_showable, confirmed, known, limits
from kdc.driver.lowering import INPUTS_MOST, Candidate, Lowering
from kdc.driver.plan import Plan, make
from kdc.driver.recipe import Recipe, lock_text
from kdc.driver.report import Drop, Metric, ModelRow, Report, Routing, StepRow, contradictions, missed
from kdc.driver.robustness import robustness
from kdc.driver.routing import exit_limits, routing
from kdc.driver.select import select
from kdc.driver.sources import versions
from kdc.driver.steps import GAVE_UP, WEIGHTS, Kept, Made, Steps, begun
from kdc.driver.timetable import Timetable
from kdc.numerics import stats
from passes import default_passes
from passes.export.staged import PLAN, staged_files
from targets.cascade import is_cascade
from targets.device import load_device
from targets.door.admit import admit
from targets.measure import Settings, measure
from targets.measured import Measured, Profile
from targets.parts import renamed
from targets.runtime import running

STUDENT, TEACHER, REPORT = "student.onnx", "teacher.onnx", "report.json"
MIX_SAMPLES = 2000
COLD_SECONDS, COLD_GLANCE_SECONDS = 20.0, 5.0  # where the budget limits cold runs, and where it does not
STRUCTURE, LOCK = "structure.json", "recipe.lock.yaml"
STAGED = f"cascade/{PLAN}"
SYNTHETIC = "synthesised from the teacher"


def identity(recipe: Recipe) -> dict[str, str]:
    """What makes an output folder this recipe's: its teacher and its data."""
    return {
        "teacher": recipe.teacher.build,
        "weights": str(recipe.teacher.weights),
        "data": recipe.data.load or SYNTHETIC,
    }


def compress(
    recipe: Recipe,
    out: Path,
    emit: Emit = silent,
    kept: Kept | None = None,
    began: float | None = None,
    *,
    force: bool = False,
    allow_torchscript: bool = False,
) -> Report:
    """Run a recipe into a folder, or go on with it where an earlier command stopped.

    Args: kept: where and how much of the teacher's answers; it changes no result. began: since when the time of the run
        counts, by `time.monotonic`; None: now. force: overwrite files in `out` that stand in a result's place, and that
        kdc did not write. allow_torchscript: whether TorchScript files that `training.teachers` names may be called.
    Returns: the report; `report.met` says whether every limit of the budget is met (else the nearest student is kept).
    Raises: UserError for the user's mistakes, LawError where a pass broke its contract.
    """
    began = time.monotonic() if began is None else began
    device = load_device(recipe.target)
    running(device)  # a student is judged by running it: where that cannot be, nothing is begun
    if recipe.passes is None:
        recipe = recipe.model_copy(update={"passes": tuple(default_passes(device))})  # the lock leaves nothing open
    plan = make(recipe.passes, device)
    folder.check(out, identity(recipe), () if force else (STUDENT, TEACHER, REPORT, WEIGHTS, STRUCTURE, LOCK))
    _admit_files(recipe)
    named = read(recipe, allow_torchscript=allow_torchscript)
    lock = lock_text(recipe)
    with folder.opened(out, identity(recipe)) as private:
        sha = hashlib.sha256(lock.encode()).hexdigest()
        clock = Clock(private / "clock.json", sha, recipe.budget.compile_minutes, began)
        store = Store(private / folder.STORE, emit)
        clock.ends = not begun(store, [planned.label for planned in plan.compress])
        try:
            inputs = named.inputs(store, clock.watching(emit))
            return _Run(inputs, plan, store, clock, emit, kept).into(out, lock, force=force)
        finally:
            clock.write()


def _admit_files(recipe: Recipe) -> None:
    """Raises: UserError where an ONNX file that the recipe names is not admitted: now, and not when it is needed."""
    if recipe.previous is not None:
        admit(recipe.previous)
    for source in named_in(recipe.passes):
        files(source)


class _Run:
    def __init__(
        self, inputs: Inputs, plan: Plan, store: Store, clock: Clock, emit: Emit, kept: Kept | None = None
    ) -> None:
        self.inputs, self.plan, self.clock, self.emit = inputs, plan, clock, emit
        self.budget = inputs.recipe.budget
        self.steps = Steps(inputs, store, clock.watching(emit), kept)
        self.lowering = Lowering(self.steps, plan, clock.timed)
        cold = self.budget.latency_ms_cold is not None
        asked = inputs.recipe.measure
        cold_seconds = COLD_SECONDS if cold else COLD_GLANCE_SECONDS
        measuring = Settings(
            seconds=asked.seconds, cold_seconds=cold_seconds if asked.cold_seconds is None else asked.cold_seconds
        )
        self.time = Timetable(clock, plan.compress, inputs.data, measuring, cold)
        self.left_out: list[str] = []

    def into(self, out: Path, lock: str, *, force: bool = False) -> Report:
        for note in self.inputs.data.notes:
            self.emit(Note(note))
        check_showable(self.budget, len(self.inputs.data.validation))
        if self.time.limited:
            self._expect_time()
            self.lowering.warm_up()
        teacher = self.lowering.teacher
        self._check_better_than_chance(teacher)
        self._check_floor()
        self._check_time()
        students = self._students()
        measured = self._measure(teacher, students)
        judged = [self._judge(teacher, student, measured, i) for i, student in enumerate(students)]
        if self.time.limited:
            self.lowering.inputs_most = self.clock.decided("inputs", self._timed_inputs)
        routed = self._routed(teacher, students)
        same = _same_files(students)
        exits = {i: exit_limits(one, students[i].made.artifact.lineage[-1].settings) for i, one in routed.items()}
        minutes = self.clock.seconds / 60
        verdicts = [(*limits(self.budget, one, minutes), *exits.get(i, ())) for i, one in enumerate(judged)]
        chosen = select(judged, verdicts, measured.ratio_between, same)
        notes = (
            *self._shortened(students),
            *(f"{students[i].label}: the same file as after {students[first].label}" for i, first in same.items()),
            *(f"{students[i].label}: {missed(one)}" for i in exits for one in exits[i] if not one.met),
        )
        report = self._report(teacher, judged, verdicts, chosen, measured, routed, notes)
        folder.publish(out, self._results(lock, teacher, students[chosen], report), force=force)
        return report

    def _check_better_than_chance(self, teacher: Candidate) -> None:
        chance = self.inputs.task.chance(self.inputs.data)
        if teacher.points <= chance:
            raise ModelError(
                f"the teacher scores {teacher.points:.1f} on the validation split, and guessing one class {chance:.1f}",
                do="check that the weights belong to this model, and that the data are preprocessed as in its training",
            )

    def _check_floor(self) -> None:
        """See that a latency limit is one that some graph could meet, before anything is trained for it."""
        limits_ms: dict[str, float] = {}
        if self.budget.latency_ms is not None:
            limits_ms["latency_ms"] = self.budget.latency_ms
        if self.budget.latency_ms_cold is not None:
            limits_ms["latency_ms@cold"] = self.budget.latency_ms_cold  # nothing is faster cold than hot
        if self.budget.min_speedup is not None:
            limits_ms["min_speedup"] = self.lowering.teacher_cost().latency_ms / self.budget.min_speedup
        if not limits_ms:
            return
        floor_ms = self.lowering.floor_ms()
        for name, limit_ms in limits_ms.items():
            if limit_ms < floor_ms:
                raise BudgetError(
                    f"budget.{name} asks for {limit_ms:.5f} ms, and {self.inputs.device.runtime} takes {floor_ms:.5f} ms "
                    "for a graph that does nothing",
                    do=f"loosen {name}: no student can be below the runtime's own floor",
                )

    def _expect_time(self) -> None:
        """See from the teacher's first samples in torch whether there can be time for a student, before anything is done.

        The runtime, sample by sample, hardly takes less than torch in batches.
        """
        if self.clock.ends and not self.clock.took(EVALUATE):
            seconds = self.lowering.evaluation.torch_seconds(self.steps.root)
            self.clock.expect(RUN, seconds)
            self.clock.expect(EVALUATE, 2 * seconds)
            self.time.check(2 * seconds)

    def _check_time(self) -> None:
        """Where time is limited, time the teacher, and see that there is enough for one student at all.

        A run that goes on has something to finish, whatever the clock says.
        """
        if self.time.limited:
            self.lowering.teacher_cost()
            if self.clock.ends:
                self.time.check()
        self.clock.ends = False

    def _students(self) -> list[Candidate]:
        """Every compressing pass in turn, the student after each lowered and judged."""
        students: list[Candidate] = []
        made: Made = self.steps.root
        of = len(self.plan.compress)
        for number, planned in enumerate(self.plan.compress, start=1):
            stored = self.steps.found(planned.label, planned, made)[1] is not None
            if not stored and self.time.leaves_out(len(students)):
                names = ", ".join(one.label for one in self.plan.compress[number - 1 :])
                self.left_out.append(f"{names}: left out, by compile_minutes {self.budget.compile_minutes:g}")
                self.emit(Note(self.left_out[-1]))
                break
            forecasts = self.lowering.forecasts(self.plan.compress[number:])
            deadline = partial(self.time.deadline, number, len(students))
            made = self.steps.run(
                planned.label, planned, made, (number, of), forecasts, self.lowering.teacher_cost, deadline
            )
            students.append(self.lowering.student(made))
        return students

    def _shortened(self, students: Sequence[Candidate]) -> tuple[str, ...]:
        """What the limit on the run's time cost its steps, a sentence each."""
        told = [
            text
            for student in students
            for text in self.steps.entry_of(student.made).record["findings"].get(GAVE_UP, ())
        ]
        return (*told, *self.left_out)

    def _measure(self, teacher: Candidate, students: Sequence[Candidate]) -> Measured:
        """All files interleaved with the teacher's; stored, so that the same files are not timed again."""
        settings = self.time.measuring(1 + len(students))
        if self.time.limited:  # once, so that the same files are not timed again
            settings = Settings.model_validate(
                self.clock.decided("measuring", lambda: settings.model_dump(mode="json"))
            )
        # Early exits take their time from the inputs: as many as the split has tell of its mix.
        samples = self.lowering.samples(*((MIX_SAMPLES,) if any(s.taken is not None for s in students) else ()))
        parts = {
            "files": [teacher.sha256, *(student.sha256 for student in students)],
            "data": self.inputs.data.fingerprint,
            "samples": len(samples[0]),
            "seed": self.inputs.recipe.seed,
            "settings": settings.model_dump(mode="json"),
            **measuring_parts(self.inputs.device),
        }
        store = self.steps.store
        entry = store.find("measure", key_of(parts))
        if entry is None:
            self.emit(Note(f"timing {len(students) + 1} files in {self.inputs.device.runtime}, interleaved"))
            measured = measure(
                [student.file for student in students],
                teacher.file,
                self.inputs.device,
                samples,
                settings,
                seed=self.inputs.recipe.seed,
            )
            entry = store.write(
                "measure", parts, {}, {"samples.json": lambda path: path.write_text(measured.model_dump_json())}
            )
        return Measured.model_validate_json(entry.file("samples.json").read_text())

    def _timed_inputs(self) -> int:
        """How many inputs are timed one by one where exits are judged."""
        return self.time.timed_inputs(INPUTS_MOST, self.lowering.teacher_cost().latency_ms)

    def _routed(self, teacher: Candidate, students: Sequence[Candidate]) -> dict[int, Routing]:
        """Each student with early exits beside the one without them that it was made from, on the validation split."""
        found: dict[int, Routing] = {}
        for i, cascade in enumerate(students):
            if cascade.taken is not None:
                plain = students[i - 1] if i else teacher
                self.emit(Note(f"timing {cascade.label} and {plain.label} input by input"))
                split = self.inputs.data.validation
                seen = (cascade.outputs, cascade.taken), plain.outputs
                found[i] = routing(self.lowering, cascade, plain, "validation", split, *seen)
        return found

    def _judge(self, teacher: Candidate, student: Candidate, measured: Measured, index: int) -> Judged:
        generator = np.random.default_rng(named_seed(self.inputs.recipe.seed, "drop", student.label))
        drop = stats.paired_drop(teacher.scores, student.scores, generator)
        return Judged(
            student,
            measured.candidates[index],
            measured.ratio(index),
            drop,
            measured.samples_ns[1 + index],
            measured.cold_ratio(index),
            () if measured.cold is None else measured.cold.samples_ns[1 + index],
            student.metrics.get("churn"),
        )

    def _report(
        self,
        teacher: Candidate,
        judged: Sequence[Judged],
        verdicts: Sequence[tuple[Verdict, ...]],
        chosen: int,
        measured: Measured,
        routed: Mapping[int, Routing],
        notes: tuple[str, ...],
    ) -> Report:
        split, task = self.inputs.data.test, self.inputs.task
        labels = split.labels.numpy()
        shipped = judged[chosen].candidate
        teacher_outputs, _ = self._tested(teacher)
        student_outputs, taken = self._tested(shipped)
        scores = [task.scores(outputs, labels) for outputs in (teacher_outputs, student_outputs)]
        generator = np.random.default_rng(named_seed(self.inputs.recipe.seed, "drop", "test"))
        drop = stats.paired_drop(scores[0], scores[1], generator)
        previous = self.lowering.previous("test")
        metrics = task.metrics(student_outputs, labels, teacher_outputs, previous)
        churned = stats.fraction_interval(metrics["churn"] / 100, len(split)) if "churn" in metrics else None
        final = confirmed(verdicts[chosen], drop, churned)
        rows = tuple(self._row(one, verdicts[i], i == chosen, routed.get(i)) for i, one in enumerate(judged))
        on_test = None
        if taken is not None:
            plain = judged[chosen - 1].candidate if chosen else teacher
            without, _ = self._tested(plain)
            on_test = routing(self.lowering, shipped, plain, "test", split, (student_outputs, taken), without)
        libraries = ("torch", "onnx", self.inputs.device.runtime, "kdc")
        return Report(
            target=self.inputs.device.name,
            task=task.name,
            previous=None if self.inputs.recipe.previous is None else str(self.inputs.recipe.previous),
            teacher=self._model(
                "test",
                scores[0],
                task.metrics(teacher_outputs, labels, None, previous),
                measured.baseline,
                teacher.sha256,
            ),
            student=self._model(
                "test",
                scores[1],
                metrics,
                judged[chosen].profile,
                judged[chosen].candidate.sha256,
            ),
            steps=rows,
            budget=final,
            met=all(one.met for one in final),
            speedup=judged[chosen].ratio,
            cold_speedup=judged[chosen].cold_ratio,
            drop=Drop(**drop._asdict()),
            robustness=robustness(self.steps, self.plan, shipped.made),
            routing=on_test,
            ships=STAGED if is_cascade(shipped.file.path) else _device_file(shipped),
            notes=(*self.inputs.data.notes, *measured.notes, *notes, *contradictions(final)),
            environment={**measured.environment, "libraries": versions(libraries)},
            seconds=round(self.clock.seconds, 1),
        )

    def _tested(self, candidate: Candidate) -> tuple[Array, Array | None]:
        return self.lowering.evaluation.test(candidate.label, candidate.file)

    def _row(self, judged: Judged, verdicts: tuple[Verdict, ...], selected: bool, routed: Routing | None) -> StepRow:
        candidate = judged.candidate
        step = candidate.made.artifact.lineage[-1]
        return StepRow(
            name=candidate.label,
            kind=step.kind,
            settings=step.settings,
            decision=step.decision,
            seconds=step.seconds,
            student=self._model("validation", candidate.scores, candidate.metrics, judged.profile, candidate.sha256),
            speedup=judged.ratio,
            cold_speedup=judged.cold_ratio,
            drop=Drop(**judged.drop._asdict()),
            parity=candidate.parity,
            budget=verdicts,
            findings=self.steps.entry_of(candidate.made).record["findings"],
            routing=routed,
            selected=selected,
        )

    def _model(
        self, split: str, scores: stats.Floats, metrics: dict[str, float], profile: Profile, sha256: str
    ) -> ModelRow:
        interval = stats.accuracy_interval(scores)
        return ModelRow(
            split=split,
            metric=Metric(name=self.inputs.task.metric, points=interval.value, low=interval.low, high=interval.high),
            metrics=metrics,
            latency=profile.latency,
            cold=profile.cold,
            size_mb=profile.size_mb,
            parameters=known(profile.parameters),
            macs=known(profile.macs),
            peak_memory_mb=profile.peak_memory_mb,
            placement=profile.placement,
            sha256=sha256,
        )

    def _results(self, lock: str, teacher: Candidate, student: Candidate, report: Report) -> dict[str, Path | str]:
        """Each file of the results, by its name in --out: what to copy, or the text itself."""
        structure = {
            "schema_version": 1,
            "teacher": {"build": self.inputs.recipe.teacher.build, "arguments": self.inputs.recipe.teacher.arguments},
            "inputs": [spec.model_dump(mode="json") for spec in student.made.artifact.inputs],
            "outputs": [spec.model_dump(mode="json") for spec in student.made.artifact.outputs],
            # Seconds are left out: the file is the same for the same student.
            "steps": [step.model_dump(mode="json", exclude={"seconds"}) for step in student.made.artifact.lineage],
        }
        files: dict[str, Path | str] = {
            TEACHER: teacher.onnx,
            WEIGHTS: self.steps.folder_of(student.made) / WEIGHTS,
            STRUCTURE: json.dumps(structure, indent=1) + "\n",
            LOCK: lock,
            REPORT: report.model_dump_json(indent=1) + "\n",
        }
        if not is_cascade(student.file.path):
            files |= {STUDENT: student.onnx, **renamed(student.file, self.lowering.runtime, Path(STUDENT).stem)}
        if student.staged is not None:
            folder_name = Path(STAGED).parent
            files |= {str(folder_name / path.name): path for path in staged_files(student.staged)}
        return files


def _same_files(students: Sequence[Candidate]) -> dict[int, int]:
    """Students whose step changed nothing, which do not ship, and the first student of the same file."""
    first: dict[str, int] = {}
    for i, student in enumerate(students):
        first.setdefault(student.sha256, i)
    return {i: first[student.sha256] for i, student in enumerate(students) if first[student.sha256] != i}


def _device_file(student: Candidate) -> str:
    return Path(STUDENT).stem + student.file.path.suffix
