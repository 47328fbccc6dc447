"""What a teacher says to a view of the training split: computed once in blocks, then read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.contract import Context, named_seed
from kdc.core.data import Split
from kdc.core.observe import Note, Progress
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.answers import AnswerFile, Answers, Header, Source
from kdc.distill.cache import Cache
from kdc.distill.forms import Bytes, Rebuilt, encode
from kdc.distill.policy import Policy
from kdc.distill.predict_only import asked_only
from kdc.distill.views import View

BLOCK = 250  # samples: what a teacher is given at once, and what is lost by a kill


class TeacherAnswers:
    """One teacher's answers in one training. What is on the disk is held, so that nobody evicts it, until `close`.

    What does not fit into the cache is computed each time that it is asked for, in the same blocks and through the same
    bytes, so that a training gives the same student with any cache, and with none.
    """

    def __init__(
        self,
        context: Context,
        teacher: nn.Module | None = None,
        form: AnswerForm | None = None,
        rebuilt: Rebuilt = "estimate",
        name: str = "teacher",
    ) -> None:
        self.context, self.name = context, name
        self.teacher = context.teacher if teacher is None else teacher
        self.form, self.rebuilt = form or AnswerForm(), rebuilt
        self._cache = Cache(context.cache_root or context.cache, context.cache_bytes)
        self._held: dict[str, Answers] = {}
        self._told = False

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.teacher)

    def __enter__(self) -> TeacherAnswers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def of(self, view: View) -> Answers:
        """The answers to a view, from the cache, or computed now.

        Raises: FolderError where the cache's file is another teacher's; ModelError where the teacher's outputs cannot be
            learned from, or a budget of queries does not suffice.
        """
        if view.key in self._held:
            return self._held[view.key]
        file = self._found(view.key)
        if file is not None:
            missing = file.missing()
            self._require(view.samples, missing)
            for block, rows in self._computed(view, file.header, missing):
                file.write(block, rows)
            return self._hold(view.key, file)
        header, first = self._begun(view)
        file = self._cache.make(self._path(header.source), header)
        if file is not None:
            file.write(0, first)
            for block, rows in self._computed(view, header, file.missing()):
                file.write(block, rows)
            return self._hold(view.key, file)
        self._tell(header)
        every: Bytes = np.empty((header.samples, header.row_bytes), np.uint8)
        every[header.rows_of(0)] = first
        for block, rows in self._computed(view, header, range(1, header.blocks)):
            every[header.rows_of(block)] = rows
        return Answers(header, every, self.rebuilt)

    def foretold(self, view: View) -> float:
        """About how many seconds the answers to a view will take, by a block of them; 0 where they are there."""
        blocks = -(-len(view.samples) // BLOCK)
        if view.key in self._held:
            return 0.0
        file = self._found(view.key)
        if file is not None:
            blocks = len(file.missing())
        if blocks == 0:
            return 0.0
        few = view.samples[:BLOCK]
        self._asked(few[:8])  # the first forward of all takes longer
        began = time.monotonic()
        self._asked(few)
        return blocks * (time.monotonic() - began)

    def prepare(self, views: Sequence[Callable[[], View]]) -> None:
        """Compute what is missing of these views, then let the teacher go: the training that follows only reads.

        Args: views: what makes each; one is in memory at a time.
        """
        for part in asked_only(self.teacher):
            part.require(batch.inputs for make in views for batch in make().samples.batches(BLOCK))
        for make in views:
            view = make()
            self.of(view)
            if view.key not in self._held:
                break  # the cache is full: it will be computed when it is needed
        self.release()

    def release(self) -> None:
        """Let what can be loaded again go out of memory."""
        for part in asked_only(self.teacher):
            part.release()

    def close(self) -> None:
        """Let go of the files."""
        self._held.clear()
        self._cache.close()

    def _source(self, key: str, form: AnswerForm) -> Source:
        context = self.context
        return Source(teacher=self._digest, data=context.data.fingerprint, seed=context.seed, view=key, form=form)

    def _path(self, source: Source) -> Path:
        return self.context.cache / source.name()

    def _found(self, key: str) -> AnswerFile | None:
        """The file of this view, found without asking the teacher, who alone knows the outputs' shape."""
        for form in self.form.possible():
            source = self._source(key, form)
            file = self._cache.find(self._path(source), source)
            if file is not None and self.form.of(file.header.shape) == form:
                return file
        return None

    def _hold(self, key: str, file: AnswerFile) -> Answers:
        self._held[key] = Answers(file.header, file.rows, self.rebuilt)
        return self._held[key]

    def _begun(self, view: View) -> tuple[Header, Bytes]:
        """The header, which needs to know the outputs' shape, and the first block."""
        samples = len(view.samples)
        blocks = -(-samples // BLOCK)
        self._require(view.samples, range(blocks))
        outputs = self._asked(view.samples[:BLOCK])
        shape = tuple(outputs.shape[1:])
        source = self._source(view.key, self.form.of(shape))
        header = Header(source=source, samples=samples, shape=shape, block=BLOCK)
        return header, self._encoded(outputs, header, 0)

    def _computed(self, view: View, header: Header, missing: Sequence[int]) -> Iterator[tuple[int, Bytes]]:
        what = f"{self.name}'s answers, view {view.key}"
        for done, block in enumerate(missing):
            yield block, self._encoded(self._asked(view.samples[header.rows_of(block)]), header, block)
            self.context.emit(Progress(what, done + 1, len(missing), "blocks"))

    def _encoded(self, outputs: torch.Tensor, header: Header, block: int) -> Bytes:
        source = header.source
        seed = named_seed(source.seed, "answers", source.teacher, source.view, block)
        return encode(outputs, header.form, torch.Generator().manual_seed(seed), header.rows_of(block).start)

    @torch.no_grad()
    def _asked(self, samples: Split) -> torch.Tensor:
        """The teacher's outputs, float32, in evaluation mode; the mode is left as it was."""
        training = self.teacher.training
        self.teacher.eval()
        device = next((tensor.device for tensor in self.teacher.parameters()), torch.device("cpu"))
        outputs: torch.Tensor = self.teacher(*(tensor.to(device) for tensor in samples.inputs)).float().cpu()
        self.teacher.train(training)
        return outputs

    def _require(self, samples: Split, blocks: Sequence[int]) -> None:
        """Ask a teacher that counts its queries whether it may answer these blocks, before the first is asked."""
        for part in asked_only(self.teacher):
            part.require(samples[block * BLOCK : (block + 1) * BLOCK].inputs for block in blocks)

    def _tell(self, header: Header) -> None:
        if not self._told and self.context.cache_bytes != 0:
            self._told = True
            self.context.emit(
                Note(
                    f"{self.name}'s answers to a view take {header.size / 1e9:.3g} GB, and the cache has no room for all "
                    f"(its limit is {self._cache.limit / 1e9:.3g} GB): some are computed anew in each epoch"
                )
            )


def reading(form: AnswerForm, policies: Sequence[Policy]) -> tuple[AnswerForm, Rebuilt]:
    """The form, and which row a sparse one becomes, for policies that read the teacher's answers.

    The unbiased estimate where all of them are linear in the teacher's probabilities at one temperature; else the row
    in which what is not kept is spread evenly.
    """
    temperatures = {policy.linear_at for policy in policies if policy.reads_teacher}
    if len(temperatures) == 1:
        (only,) = temperatures
        if only is not None and form.power == 1:
            return form.model_copy(update={"temperature": only}), "estimate"
    return form, "spread"


def digest_of(teacher: nn.Module) -> str:
    """SHA-256 of what decides a teacher's answers: its own `digest` where it has one, else its structure and weights."""
    known = getattr(teacher, "digest", None)
    return known if isinstance(known, str) else Artifact(teacher, (), ()).digest()
