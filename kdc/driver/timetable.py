"""How a run with `compile_minutes` divides its time: what must be done behind the passes is set aside from the start.

Lowering, judging, measuring and reporting take what they take; how long is told by the teacher, who is lowered, judged and
timed first, on this machine as busy as it is. What is left is divided among the passes by the epochs that they may train
for, and divided anew before each. A pass gets a deadline and does with the time that it has. Measuring is shortened before
a pass is: down to three processes, which a verdict needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdc.core.data import Splits
from kdc.core.deadline import Deadline
from kdc.driver.clock import EVALUATE, LOWER, RUN, TIME, Clock, TimeUpError
from kdc.driver.limits import tolerance_seconds
from kdc.driver.plan import Planned
from kdc.driver.robustness import SAMPLES, strongest
from targets.settings import PROCESSES_LEAST, Settings

LOOK_SECONDS = 1.5  # of such a look, what is no start of a process: its runs and its warm-up
FILE_SECONDS = 0.6  # of each file in a measuring process: its warm-up and its rounds
MEASURE_SHARE = 0.25  # of the limit, what measuring may have where it would take more
END_SECONDS = 1.0  # the folder and the report
STUDENT_SHARE = 0.5  # of the teacher's time over a split, what a student is expected to take: less leaves time unused


class Timetable:
    """The time of one run.

    Args: data: whose splits' sizes tell how long the test split takes. measuring: the settings where time is no matter.
    """

    def __init__(self, clock: Clock, passes: Sequence[Planned], data: Splits, measuring: Settings, cold: bool) -> None:
        self.clock, self.passes, self.data, self.whole, self.cold = clock, passes, data, measuring, cold

    @property
    def limited(self) -> bool:
        """Whether the run has a limit."""
        return self.clock.limit_minutes is not None

    @property
    def model_seconds(self) -> float:
        """To export one model and to time it."""
        return self.clock.took(LOWER) + self.clock.took(TIME)

    def deadline(self, number: int, made: int, folder: Path) -> Deadline | None:
        """When pass `number`, from 1 on, must have ended; None without a limit.

        Args: made: students so far. folder: the step's work folder.
        """
        if self.clock.limit_minutes is None:
            return None
        coming = len(self.passes) - number + 1
        while coming > 1 and self.for_passes(coming, made) < 2 * coming * self.model_seconds:
            coming -= 1  # the last ones will be left out: they would only take from the others
        efforts = [1 + planned.settings.training_epochs() for planned in self.passes[number - 1 :][:coming]]
        least = self.model_seconds * (coming - 1)  # what each of the later ones needs before it trains
        own = max(self.for_passes(coming, made) - least, 0.0) * efforts[0] / sum(efforts)
        at = self.clock.seconds + own
        return Deadline(lambda: self.clock.seconds, at, self.clock.limit_minutes, folder, self.model_seconds)

    def leaves_out(self, made: int) -> bool:
        """Whether there is no time for another pass: only where a student is there."""
        return self.limited and made > 0 and self.for_passes(1, made) < self.model_seconds

    def for_passes(self, coming: int, made: int) -> float:
        """Seconds that so many passes have, without lowering and judging their students; below 0: none.

        Args: made: students so far.
        """
        return self.clock.left - coming * self._student() - self.to_measure(1 + made + coming) - self.to_report()

    def least(self) -> float:
        """Seconds that the smallest thing takes that can be done from here on: one student, untrained, and its report."""
        return self._student() + self._least_measuring(2) + self.to_report()

    def check(self, teacher_seconds: float = 0.0) -> None:
        """See that the limit leaves time for a student at all.

        Args: teacher_seconds: what it still takes to judge the teacher.
        Raises: TimeUpError that says what it takes.
        """
        limit = self.clock.limit_minutes
        if limit is None:
            return
        least = teacher_seconds + self.least()
        spare = tolerance_seconds(limit) / 2  # the other half is for what takes longer than foretold
        if least > self.clock.left + spare:
            needed = (self.clock.seconds + least) / 60
            lowering, judge = ("", "judge the teacher, and to ") if teacher_seconds else (" and lowering", "")
            raise TimeUpError(
                f"compile_minutes is {limit:g}: loading{lowering} the teacher took {self.clock.seconds / 60:.2g} of "
                f"them, and to {judge}lower, measure and report a student takes about {least / 60:.2g} more",
                do=f"allow {2 * needed:.1f} minutes or more: {needed:.1f} leave none for training",
            )

    def to_measure(self, files: int) -> float:
        """Seconds set aside to measure so many files."""
        wanted = min(self._whole_measuring(files), MEASURE_SHARE * 60 * (self.clock.limit_minutes or 0))
        return max(wanted, self._least_measuring(files))

    def to_report(self) -> float:
        """Seconds set aside for what follows the measuring: the test split, attacks, exits timed input by input."""
        models = 1 + STUDENT_SHARE * (2 if self._skips() else 1)  # with exits, the student without them too
        attack = strongest(self.passes)
        attacked = 0.0
        if attack is not None:  # a forward and a backward a step, of teacher and student
            attacked = 3 * attack.attack.steps * self.clock.took(EVALUATE) * SAMPLES / max(len(self.data.validation), 1)
        exits = 2 * 5 * (self._start() + 1) if self._skips() else 0.0
        return self.clock.took(RUN) * models * self._test_share() + attacked + exits + END_SECONDS

    def measuring(self, files: int) -> Settings:
        """How long to measure so many files now; as without a limit where there is time."""
        if not self.limited:
            return self.whole
        left = self.clock.left - self.to_report()
        if left >= self._whole_measuring(files):
            return self.whole
        seconds = max(left - self._start() * files - self._process(files), 1.0)
        cold = seconds * self.whole.cold_seconds / (self.whole.seconds + self.whole.cold_seconds)
        if cold < PROCESSES_LEAST * self._process(files) and not self.cold:
            cold = 0.0  # nobody asked for it
        update = {"seconds": max(round(seconds - cold, 1), 1.0), "cold_seconds": round(cold, 1)}
        return self.whole.model_copy(update=update)

    def timed_inputs(self, most: int, teacher_ms: float) -> int:
        """How many inputs are timed one by one where exits are judged: as many as there is time for, at most `most`."""
        if not self.limited:
            return most
        seconds = max(self.clock.left, 0.0) / 4 / 5 - self._start()  # on two splits, in five processes each
        return min(most, max(50, int(seconds / (8 * max(teacher_ms, 0.01) / 1e3))))

    def _student(self) -> float:
        """Seconds to lower a student and to judge it on the validation split."""
        return self.clock.took(LOWER) + STUDENT_SHARE * self.clock.took(EVALUATE)

    def _skips(self) -> bool:
        return any(planned.settings.kind == "route" for planned in self.passes)

    def _test_share(self) -> float:
        return len(self.data.test) / max(len(self.data.validation), 1)

    def _start(self) -> float:
        """Seconds until a measuring process has begun to measure."""
        return max(0.5, self.clock.took(TIME) - LOOK_SECONDS)

    def _process(self, files: int) -> float:
        return self._start() + FILE_SECONDS * files

    def _whole_measuring(self, files: int) -> float:
        return self.whole.seconds + self.whole.cold_seconds + self._start() * files + 2 * self._process(files)

    def _least_measuring(self, files: int) -> float:
        regimes = 2 if self.cold else 1
        return self._start() * files + regimes * PROCESSES_LEAST * self._process(files)
