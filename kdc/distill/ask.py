"""A teacher somewhere else, asked through a function of the user's: within a budget, and never twice about one sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdc.core.errors import ModelError
from kdc.core.usercode import UserCallable, blamed
from kdc.distill.answers import locked
from kdc.distill.predict_only import PredictOnly
from kdc.distill.queries import AnswerLog, Floats, Ledger, sample_keys
from kdc.distill.teacher_settings import AskedSource

Array = np.ndarray[Any, Any]
LEAST = 1e-7
"""Probabilities are clipped to this before their logarithm is taken; a class number is a probability of one."""
FIRST_PAUSE = 1.0  # seconds, doubled after each try that failed
_OFF = 1e-3  # how far probabilities may be from a sum of one
_MISTAKES = (TypeError, NameError, AttributeError, ImportError, SyntaxError, AssertionError, NotImplementedError)


class AskedTeacher(PredictOnly):
    """The answers of `ask(*arrays)`, as logits, float32 [n, classes].

    A sample is named by its very values: an augmented one is another sample, and an equal one in another view, run or
    process is not asked about again. Every try counts against the budget, for what was sent may have to be paid for.
    """

    def __init__(
        self,
        digest: str,
        function: UserCallable,
        settings: AskedSource,
        folder: Path,
        ledger: Path,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(digest)
        self.function, self.settings, self.pause = function, settings, pause
        self.ledger = Ledger(ledger, settings.queries, f"teacher {settings.ask}")
        self._log = AnswerLog(folder / f"asked-{digest[:16]}.log")
        self._lock = self._log.path.with_suffix(".lock")

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Raises: ModelError where the budget does not suffice, every try fails, or the answers are not what was said."""
        arrays = _arrays(inputs)
        keys = sample_keys(arrays)
        with locked(self._lock):  # another process may be asking about the same samples
            self._log.refresh()
            places = {key: place for place, key in enumerate(keys) if key not in self._log}
            unknown = list(places)
            self.ledger.require(len(unknown))
            for start in range(0, len(unknown), self.settings.batch):
                part = unknown[start : start + self.settings.batch]
                index = [places[key] for key in part]
                self._log.append(part, self._answers([array[index] for array in arrays]))
            return torch.from_numpy(self._log.read(keys))

    def require(self, batches: Iterable[Sequence[torch.Tensor]]) -> None:
        """See whether the budget suffices for all that is not known of these inputs, before anything is asked.

        Raises: ModelError that says how many more queries are needed.
        """
        with locked(self._lock):
            self._log.refresh()
        unknown = {key for inputs in batches for key in sample_keys(_arrays(inputs)) if key not in self._log}
        self.ledger.require(len(unknown))

    def release(self) -> None:
        """Nothing is held."""

    def _answers(self, arrays: list[Array]) -> Floats:
        settings, what = self.settings, f"teacher {self.settings.ask}"
        for number in range(settings.tries):
            self.ledger.spend(len(arrays[0]))
            try:
                found = self.function(*arrays)
                break
            except _MISTAKES:  # no other try would end otherwise
                with blamed(what, ModelError, self.function.file):
                    raise
            except Exception:
                if number == settings.tries - 1:
                    with blamed(f"{what}, after {settings.tries} tries,", ModelError, self.function.file):
                        raise
            self.pause(FIRST_PAUSE * 2**number)
        return self._logits(np.asarray(found), len(arrays[0]))

    def _logits(self, found: Array, count: int) -> Floats:
        settings = self.settings
        if settings.gives == "classes":
            assert settings.classes is not None
            if found.shape != (count,) or found.dtype.kind not in "iu":
                raise self._misfit(found, f"class numbers, integers of shape [{count}]")
            if count and not (found.min() >= 0 and found.max() < settings.classes):
                raise self._misfit(found, f"class numbers from 0 to {settings.classes - 1}, not {found.max()}")
            return np.log(np.clip(np.eye(settings.classes)[found], LEAST, 1.0)).astype(np.float32)
        width = self._log.width
        if found.ndim != 2 or len(found) != count or found.dtype.kind != "f" or width not in (None, found.shape[1]):
            raise self._misfit(found, f"floating point of shape [{count}, {width or 'classes'}]")
        if not np.isfinite(found).all():
            raise self._misfit(found, "finite numbers")
        if settings.gives == "logits":
            return found.astype(np.float32)
        if found.min() < -_OFF or np.abs(found.sum(1) - 1).max() > _OFF:
            raise self._misfit(found, "probabilities: rows of numbers from 0 to 1 that sum to 1")
        return np.log(np.clip(found.astype(np.float64), LEAST, 1.0)).astype(np.float32)

    def _misfit(self, found: Array, expected: str) -> ModelError:
        return ModelError(
            f"teacher {self.settings.ask} gave {found.dtype} of shape {list(found.shape)}; expected {expected}",
            do="mend the function, or say what it gives with `gives`",
        )


def _arrays(inputs: Sequence[torch.Tensor]) -> list[Array]:
    return [tensor.detach().cpu().contiguous().numpy() for tensor in inputs]
