"""The student's inner layers learn labels and transforms of the input, and teach one another."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from kdc.core.contract import Context
from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.distill.alignment import Layer
from kdc.distill.feature_terms import Answering
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.strategies.classes import count_classes, told
from kdc.distill.strategy_settings.layered import Layered
from kdc.distill.taps import Tap, candidates, described


class LayeredAnswers(Policy):
    """Auxiliary classifiers of label x rotation on inner layers; each stage learns from the next deeper one too.

    With q_l the stage l's distribution over classes x rotations, one sample's loss is the mean over the rotations j of
    mean_l -log q_l(label, j) + between * mean_{l < L} T^2 KL(q_{l+1} || q_l), both at the temperature T in the second
    sum, where nothing flows into the deeper stage. Images turn by quarter turns; where the input is no square map alone,
    nothing is turned and the stages learn the labels alone (a note says so). The turned images run through the student
    with copies of its BatchNorm statistics, so that those that are exported are of upright images.

    The classifiers stand beside the student, not in it: what is exported is the plain student. A strategy that changes
    the inputs stands before this one in training.strategies, else the turned images are not its.
    Source: LSSKD, Dahri et al. 2025, arXiv:2506.07055, as in the abstract; the joint label is that of HSAKD, Yang et al.
    2021, arXiv:2107.13715. Which stage teaches which, and the one linear map of each classifier, are our choice. The
    paper also softens labels by the answers of the epoch before: for those of the output, add ps-kd.
    """

    reads_teacher = False
    of_labels = True

    def __init__(self, settings: Layered, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student = settings, settings.kind, student
        self.classes = count_classes(self.kind, context)
        inputs = context.data.calibration.inputs
        self.layers = _stages(settings, student, inputs)
        self.turns = settings.rotations if _turns(inputs) else 1
        generator = context.generator(f"{self.kind}.classifiers")
        self.classifiers = nn.ModuleList(
            Answering(layer.channels, self.classes * self.turns, generator) for layer in self.layers
        )
        self.trained: nn.Module | None = self.classifiers
        self._turned: list[torch.Tensor] = []
        self._tap = Tap(student, [layer.path for layer in self.layers])
        learns = f"labels and {self.turns} rotations" if self.turns > 1 else "labels alone"
        context.emit(Note(f"{self.kind} teaches {learns} to {', '.join(layer.path for layer in self.layers)}"))

    def change(self, drawn: Drawn) -> Drawn:
        """The turned images run here, before the student sees the batch itself, whose features the others read."""
        self._turned = []
        if self.turns > 1:
            (images,) = drawn.inputs
            turned = torch.cat([images.rot90(turn, (2, 3)) for turn in range(1, self.turns)])
            statistics = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
            functional_call(self.student, statistics, (turned,))
            self._turned = self._answers()
        return drawn

    def loss(self, batch: Batch) -> torch.Tensor:
        n, settings = len(batch.labels), self.settings
        answers = self._answers()  # the features are of the batch now
        if self._turned:
            answers = [torch.cat(both) for both in zip(answers, self._turned, strict=True)]
        targets, known = told(batch, self.classes)
        joint = torch.cat([functional.pad(targets, self._place(turn)) for turn in range(self.turns)])
        right = torch.stack([functional.cross_entropy(q, joint, reduction="none") for q in answers]).mean(0)
        losses = right * known.repeat(self.turns)
        if len(answers) > 1:
            pairs = pairwise(answers)
            agree = torch.stack([soft_targets(q, deeper.detach(), settings.temperature) for q, deeper in pairs])
            losses = losses + settings.between * agree.mean(0)
        self._turned = []
        return settings.weight * losses.reshape(self.turns, n).mean(0)

    def close(self) -> None:
        self._tap.close()
        self._turned = []

    def _answers(self) -> list[torch.Tensor]:
        """Logits [batch, rotations * classes] of each stage, from the last forward."""
        features = [layer.channels_first(self._tap.features[layer.path]) for layer in self.layers]
        return [classifier(feature) for classifier, feature in zip(self.classifiers, features, strict=True)]

    def _place(self, turn: int) -> tuple[int, int]:
        """Zeros before and after a distribution over classes that make it one over rotations and classes."""
        return turn * self.classes, (self.turns - 1 - turn) * self.classes


def _stages(settings: Layered, student: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[Layer]:
    """The layers named, or as many as wanted, evenly over the depth, the deepest among them."""
    if settings.layers:
        return described(student, inputs, settings.layers)
    found = [layer for layer in candidates(student, inputs) if _is_learned(student, layer.path)]
    if not found:
        raise ModelError(
            f"{settings.kind} found no inner layer of the student",
            do=f"name some in the recipe: strategies: [{{kind: {settings.kind}, layers: [student.path]}}]",
        )
    count = min(settings.stages, len(found))
    return [found[(i + 1) * len(found) // count - 1] for i in range(count)]


def _is_learned(student: nn.Module, path: str) -> bool:
    """Whether a module with parameters stands in this one or before it: else its output is the input in another form."""
    modules = dict(student.named_modules())
    before = list(modules)[: list(modules).index(path)]
    return any(True for _ in modules[path].parameters()) or any(
        True for name in before for _ in modules[name].parameters(recurse=False)
    )


def _turns(inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether a quarter turn of the input is an input: one square map."""
    first = inputs[0]
    return len(inputs) == 1 and first.dim() == 4 and first.is_floating_point() and first.shape[2] == first.shape[3] > 1
