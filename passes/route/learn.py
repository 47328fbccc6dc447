"""Exits learn from the teacher beside the model that they stand in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdc.core.cascade import Cascade
from kdc.core.contract import Context
from kdc.core.observe import Note
from kdc.core.weights import load_checkpoint, save_checkpoint
from kdc.distill.feature_settings import FeatureObjective
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.policy import Batch, Policy
from kdc.distill.settings import Objective
from kdc.distill.taps import Tap
from kdc.distill.teacher import EVALUATION_BATCH
from kdc.distill.teacher_answers import TeacherAnswers
from kdc.distill.views import view
from passes.route.stages import parameters_by_name

if TYPE_CHECKING:
    from passes.route import Route

LEARNED = "learned.safetensors"
FIT_SAMPLES = 4096
RIDGE = 1e-4  # of the features' own variance
_MODEL, _EXIT = "model/", "exit/"


def learn(cascade: Cascade, context: Context, settings: Route, name: str = "exits") -> Cascade:
    """Train the heads, and the stages where the backbone is trained; in place, in evaluation mode when it comes back.

    Every exit follows the teacher by the recipe's own objectives, all at once: what one exit learns, the stages before
    it learn with it. A training of this name that was killed goes on.
    Source: Phuong and Lampert 2019, "Distillation-based training for multi-exit architectures", ICCV; Scardapane et al.
    2020, arXiv:2004.12814, section 3 (the ways to train exits, compared).
    """
    frozen = settings.backbone == "frozen"
    training = settings.training
    if frozen:  # what the last stage gives is then a constant: nothing is learned from it
        training = training.model_copy(update={"objectives": (), "strategies": (), "calibrate": False})
    temperatures = [head.temperature for head in cascade.exits]
    for head in cascade.exits:
        head.temperature = 1.0  # type: ignore[assignment]  # it is of the calibration behind the training
    _begin(cascade, context)
    model = _Last(cascade)
    exits = _ExitLoss(model, context, settings.training.objectives, settings.exit_weight)
    try:
        train(model, context.named(name), training, [exits], frozen=[*cascade.stages] if frozen else [])
    finally:
        exits.close()
        for head, temperature in zip(cascade.exits, temperatures, strict=True):
            head.temperature = temperature
    return cascade.requires_grad_(True).eval()


@torch.no_grad()
def _begin(cascade: Cascade, context: Context) -> None:
    """Give each head's linear layer the least squares of the teacher's logits, as the training's first weights.

    A pooled early feature needs weights far larger than a layer's usual first ones: a training that is short enough to
    leave the model as it is would not get there.
    """
    first = view(context.data, context.seed, 0)
    samples = first.samples
    some = torch.randperm(len(samples), generator=context.generator("heads"))[:FIT_SAMPLES]
    with TeacherAnswers(context, rebuilt="spread") as answers:
        logits = answers.of(first)[some].double()
    cascade.eval()
    pooled: list[list[torch.Tensor]] = [[] for _ in cascade.exits]
    for batch in samples[some].batches(EVALUATION_BATCH):
        features: tuple[torch.Tensor, ...] = batch.inputs
        for stage, head, seen in zip(cascade.stages, cascade.exits, pooled, strict=False):
            features = (stage(*features),)
            seen.append(head.pooled(*features))  # type: ignore[operator]
    for head, seen in zip(cascade.exits, pooled, strict=True):
        inputs = torch.cat(seen).double()
        mean, aim = inputs.mean(0), logits.mean(0)
        centred = inputs - mean
        gram = centred.T @ centred
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
        weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), centred.T @ (logits - aim)).T
        linear: nn.Linear = head.linear  # type: ignore[assignment]
        linear.weight.copy_(weight.float())
        linear.bias.copy_((aim - weight @ mean).float())


class _Last(nn.Module):
    """A cascade whose outputs are the last stage's, as the loop trains them; every head runs."""

    def __init__(self, cascade: Cascade) -> None:
        super().__init__()
        self.cascade = cascade

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.cascade.answers(*inputs)[-1]


class AllAnswers(nn.Module):
    """A cascade whose outputs are all its answers, [batch, exits + 1, classes]; in the cascade's own mode."""

    def __init__(self, cascade: Cascade) -> None:
        super().__init__()
        self.cascade = cascade
        self.training = cascade.training

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.cascade.answers(*inputs), 1)


class _ExitLoss(Policy):
    """The objectives on every exit's own logits: `weight` times their mean over the exits.

    Objectives on features are left out: an exit has none that should be like the teacher's.
    """

    runs_teacher = False

    def __init__(self, model: _Last, context: Context, objectives: Sequence[Objective], weight: float) -> None:
        self.weight = weight
        own = [objective for objective in objectives if not isinstance(objective, FeatureObjective)]
        paths = [f"cascade.exits.{place}" for place in range(len(model.cascade.exits))]
        # One policy an exit: what one remembers of its steps is of that exit's outputs alone.
        self._parts: dict[str, list[Policy]] = {path: policies(own, model, context) for path in paths}
        remembered = [part.trained for parts in self._parts.values() for part in parts if part.trained is not None]
        self.trained: nn.Module | None = nn.ModuleList(remembered) if remembered else None
        self._tap = Tap(model, paths)

    def loss(self, batch: Batch) -> torch.Tensor:
        losses = [
            value
            for path, parts in self._parts.items()
            for part in parts
            if (value := part.loss(replace(batch, student=self._tap.features[path]))) is not None
        ]
        return self.weight * torch.stack(losses).sum(0) / len(self._parts)

    def close(self) -> None:
        self._tap.close()


def keep(cascade: Cascade, path: Path) -> None:
    """Write what stages and heads learned, by the names that tensors have in the whole model and the exits' places."""
    state = {f"{_MODEL}{name}": tensor for name, tensor in parameters_by_name(cascade.stages)}
    for head in cascade.exits:
        state |= {f"{_EXIT}{head.after}/{part}": tensor for part, tensor in head.state_dict().items()}
    save_checkpoint(state, path)


def restore(cascade: Cascade, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Fill stages and heads with what was learned, wherever the model was cut then.

    Returns: the places of exits that it holds no head of this form for.
    """
    for stage in cascade.stages:
        stage.load_state_dict({name: state[f"{_MODEL}{name}"] for name in stage.state_dict()})
    missing = []
    for head in cascade.exits:
        prefix = f"{_EXIT}{head.after}/"
        held = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        if {key: tensor.shape for key, tensor in head.state_dict().items()} == {k: t.shape for k, t in held.items()}:
            head.load_state_dict(held)
        else:
            missing.append(str(head.after))
    return missing


def recover(settings: Route, cascade: Cascade, context: Context) -> Cascade:
    """The cascade with what was learned when its exits were decided; an exit that was not there then is trained now."""
    path = context.work / LEARNED
    kept = load_checkpoint(path)
    missing = [str(head.after) for head in cascade.exits] if kept is None else restore(cascade, kept[0])
    if missing:
        context.emit(Note(f"{context.step}: no head was learned behind {', '.join(missing)}: training now"))
        # A name of these exits' own: another decision by hand must not go on from this one's checkpoint.
        structure = "/".join(map(str, cascade.exits))
        learn(cascade, context, settings, f"exits-{hashlib.sha256(structure.encode()).hexdigest()[:12]}")
    return cascade.eval()
