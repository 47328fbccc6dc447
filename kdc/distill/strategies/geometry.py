"""How much of the teacher each sample takes is learned, from where student, teacher and label stand to one another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.copies import bare_copy
from kdc.distill.policy import Batch, Policy
from kdc.distill.projectors import LinearProjector
from kdc.distill.strategies.balance import Losses, balanced, summed
from kdc.distill.strategies.classes import count_classes, told
from kdc.distill.strategy_settings.weights import Trilateral

Tensors = Mapping[str, torch.Tensor]
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # of Adam, Kingma & Ba 2015, arXiv:1412.6980


def geometry(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """The edges of the triangle of student S, teacher T and label G, and those to the teacher's mean M of the class.

    Args: all [n, classes], distributions.
    Returns: S - T, T - G, G - S, S - M, T - M, G - M side by side, [n, 6 classes].
    Source: TGeo-KD, Hu et al. 2024, arXiv:2312.15112, as in the abstract; that edges are differences of the
    distributions is our choice.
    """
    edges = (student - teacher, teacher - target, target - student, student - mean, teacher - mean, target - mean)
    return torch.cat(edges, 1)


class Share(nn.Module):
    """Edges [n, 6 classes] -> the teacher's share [n], 0 to 1; a half of each sample before anything is learned.

    Its weights are no parameters of the loop's optimizer: they are learned on other data, by an Adam of their own, whose
    moments are kept here.
    """

    def __init__(self, classes: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = LinearProjector(6 * classes + 1, hidden, generator)  # the last input is always 1
        self.outer = LinearProjector(hidden, 1, generator)
        self.requires_grad_(False)
        for parameter in self.outer.parameters():
            parameter.zero_()
        for number, parameter in enumerate(self.parameters()):
            self.register_buffer(f"moments{number}", torch.zeros((2, *parameter.shape)))
        self.register_buffer("lessons", torch.tensor(0))
        self.register_buffer("sums", torch.zeros((classes, classes)))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, edges: torch.Tensor) -> torch.Tensor:
        given = functional.pad(edges, (0, 1), value=1.0)
        share: torch.Tensor = torch.sigmoid(self.outer(functional.relu(self.inner(given)))).squeeze(1)
        return share

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of its weights that take gradients, by name."""
        return {name: parameter.clone().requires_grad_() for name, parameter in self.named_parameters()}

    def descend(self, gradients: Tensors, rate: float) -> None:
        """One step of Adam."""
        lessons = self.get_buffer("lessons")
        lessons += 1
        count = int(lessons)
        for number, (name, parameter) in enumerate(self.named_parameters()):
            moments = self.get_buffer(f"moments{number}")
            moments[0].lerp_(gradients[name], 1 - _BETA1)
            moments[1].lerp_(gradients[name].square(), 1 - _BETA2)
            size = (moments[1] / (1 - _BETA2**count)).sqrt() + _EPSILON
            parameter.sub_(rate * moments[0] / (1 - _BETA1**count) / size)

    def mean_of(self, target: torch.Tensor, teacher: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The mean of the teacher's distributions over all samples of the same class so far, [n, classes]."""
        sums, counts = self.get_buffer("sums"), self.get_buffer("counts")
        classes = target.argmax(1)[known]
        sums.index_add_(0, classes, teacher[known].to(sums))
        counts.index_add_(0, classes, torch.ones(len(classes)).to(counts))
        return target @ (sums / counts.clamp_min(1)[:, None]).to(target)


class TrilateralWeights(Policy):
    """TGeo-KD: share * teacher's losses + (1 - share) * labels' losses, with a share [0, 1] for each sample.

    The share is a small network's of the sample's `geometry`. The network learns by bilevel optimisation: the student
    takes a trial step down the weighted loss of the batch, and the network moves so that the stepped student's loss on
    held-out labels falls. The trial step is gradient descent, whatever optimizer the loop has, and one step long; the
    gradient through it is exact, so the student must be differentiable twice.

    Held out is the calibration split: no sample of the training split is in it, and no figure is reported on it.
    The teacher's mean prediction of a class is over the steps so far. Unlabelled samples have the share 1.
    Source: Hu et al. 2024, arXiv:2312.15112, as in the abstract; the network's size and the trial step are our choice.
    """

    def __init__(self, settings: Trilateral, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student, self.context = settings, settings.kind, student, context
        self.classes = count_classes(self.kind, context)
        generator = context.generator(f"{self.kind}.share")
        self.share = Share(self.classes, settings.hidden, generator)
        self.trained: nn.Module | None = self.share
        self._stepped = bare_copy(student).eval()  # runs with the weights that it is given, so that no hook sees them
        self.held_out = getattr(context.data, settings.held_out)
        self._labelled = (self.held_out.labels >= 0).nonzero().flatten()
        if not len(self._labelled):
            raise DataError(
                f"{self.kind} learns on the labels of the {settings.held_out} split, which has none",
                do=f"label some of its samples, or leave {self.kind} out of training.strategies",
            )

    def weigh(self, batch: Batch, losses: Losses) -> Losses:
        edges, known = self.seen(batch)
        of_labels, of_teacher = summed(losses, self.kind)
        if batch.number % self.settings.every == 0:
            held = self.held_out[self._drawn(batch.number)]
            weights = self.share.weights()
            outer = self.outer(weights, edges, known, of_labels, of_teacher, held)
            found = torch.autograd.grad(outer, list(weights.values()), allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                self.share.descend(dict(zip(weights, found, strict=True)), self.settings.learning_rate)
        return balanced(losses, torch.where(known, self.share(edges), 1.0))

    @torch.no_grad()
    def seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's edges [batch, 6 classes], and which samples have labels."""
        target, known = told(batch, self.classes)
        student, teacher = (functional.softmax(logits.float(), 1) for logits in (batch.student, batch.teacher))
        target = target.to(student)
        return geometry(student, teacher, target, self.share.mean_of(target, teacher, known)), known

    def outer(
        self,
        weights: Tensors,
        edges: torch.Tensor,
        known: torch.Tensor,
        of_labels: torch.Tensor,
        of_teacher: torch.Tensor,
        held: Split,
    ) -> torch.Tensor:
        """The held-out samples' loss after the trial step that these weights of the network give the student."""
        share: torch.Tensor = functional_call(self.share, dict(weights), (edges,))
        inner = torch.where(known, share * of_teacher + (1 - share) * of_labels, of_teacher).mean()
        before = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        slopes = torch.autograd.grad(
            inner, list(before.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        length = self.settings.lookahead
        after = {name: p - length * slope for (name, p), slope in zip(before.items(), slopes, strict=True)}
        rest = {**dict(self.student.named_buffers()), **dict(self.student.named_parameters())}
        outputs = functional_call(self._stepped, {**rest, **after}, tuple(held.inputs))
        loss: torch.Tensor = self.context.task.loss(outputs, held.labels).mean()
        return loss

    def _drawn(self, number: int) -> torch.Tensor:
        """Numbers of the held-out samples of this step's lesson."""
        generator = self.context.generator(f"{self.kind}.held.{number}")
        order = torch.randperm(len(self._labelled), generator=generator)
        drawn: torch.Tensor = self._labelled[order[: self.settings.batch]]
        return drawn
