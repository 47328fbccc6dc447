"""What competes on the leaderboard of distillation: each objective or strategy that a recipe can name, controls, pipelines.

They are read from the settings' own unions, so that a new one competes without a line here. No torch is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

from kdc.core.errors import UserError
from kdc.distill.settings import HardLabels, SoftTargets, Training

CROSS_ENTROPY, PLAIN_KD = "cross-entropy", "kd"
RANDOM_TEACHER, TRUNCATED_TEACHER = "random teacher", "truncated teacher"  # of plain KD
LABELS_SHARE = 0.1  # weight of the labels beside every objective

Teacher = Literal["own", "random", "truncated"]
Role = Literal["control", "objective", "strategy", "pipeline"]
STRATEGIES = "strategies"
"""Stands for all kinds of strategies and transforms."""


@dataclass(frozen=True)
class Method:
    """One way to train the student. `refused`: why it cannot be tried at all; the table says so."""

    name: str
    role: Role
    training: Training | None
    teacher: Teacher = "own"
    refused: str | None = None

    @property
    def tunable(self) -> bool:
        """Whether it has a weight to choose: a lone loss has none, for the optimizer takes any scale of it."""
        return self.training is not None and len({isinstance(o, HardLabels) for o in self.training.objectives}) == 2

    def weighted(self, factor: float) -> Training:
        """Its training with all weights but the labels' times `factor`."""
        assert self.training is not None
        if not self.tunable:
            return self.training
        objectives = tuple(
            one if isinstance(one, HardLabels) else one.model_copy(update={"weight": one.weight * factor})
            for one in self.training.objectives
        )
        return self.training.model_copy(update={"objectives": objectives})


def objective_kinds() -> dict[str, type[BaseModel]]:
    """Every kind of objective that a recipe can name, with its settings, but for the labels alone."""
    return {kind: model for kind, model in _kinds("objectives").items() if model is not HardLabels}


def strategy_kinds() -> dict[str, str]:
    """Every kind of strategy and of transform that a recipe can name: the key of `training` that it belongs to."""
    return {kind: key for key in (STRATEGIES, "transforms") for kind in _kinds(key)}


def methods(
    base: Training,
    kinds: Iterable[str] | None = None,
    beside: Literal["labels", "kd"] = "labels",
    pipelines: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Method]:
    """The controls, then one method a kind, then own pipelines.

    Args: base: epochs, batch, rate and the like, the same for all. kinds: of objectives and of strategies; `strategies`:
        all of those; None: all objectives. beside: what stands beside each objective: the labels with weight 0.1, or those
        and plain KD, which stand beside each strategy. pipelines: name: keys of a recipe's `training`.
    Raises: UserError for an unknown kind, a name given twice, or a pipeline that is no training.
    """
    known, strategies = objective_kinds(), strategy_kinds()
    asked = [*known] if kinds is None else [*dict.fromkeys(kinds)]
    chosen = [one for kind in asked for one in (strategies if kind == STRATEGIES else [kind])]
    unknown = [kind for kind in chosen if kind not in known and kind not in strategies]
    if unknown:
        raise UserError(
            f"there is no objective or strategy {', '.join(map(repr, unknown))}",
            do=f"objectives: {', '.join(known)}; strategies: {', '.join(strategies)}",
        )
    plain = (HardLabels(weight=LABELS_SHARE), SoftTargets())

    def with_objectives(*objectives: Any) -> Training:
        return base.model_copy(update={"objectives": objectives})

    made = [
        Method(CROSS_ENTROPY, "control", with_objectives(HardLabels(weight=1.0))),
        Method(PLAIN_KD, "control", with_objectives(*plain)),
        Method(RANDOM_TEACHER, "control", with_objectives(*plain), "random"),
        Method(TRUNCATED_TEACHER, "control", with_objectives(*plain), "truncated"),
    ]
    for kind in dict.fromkeys(chosen):
        if kind in strategies:
            made.append(_strategy(kind, strategies[kind], with_objectives(*plain)))
        elif known[kind] is not SoftTargets:
            made.append(_objective(kind, known[kind], base, plain[:1] if beside == "labels" else plain))
    for name, keys in (pipelines or {}).items():
        if name in {one.name for one in made}:
            raise UserError(f"two methods are called {name!r}", do="give the pipeline another name")
        try:
            training = Training.model_validate({**base.model_dump(), **keys})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"pipeline {name!r}: {where}: {first['msg']}", do="see `kdc passes distill objectives`"
            ) from error
        made.append(Method(name, "pipeline", training))
    return made


def _objective(kind: str, model: type[BaseModel], base: Training, beside: tuple[BaseModel, ...]) -> Method:
    # A head takes losses of one level only: one that sees logits class by class stands alone.
    alone = getattr(model, "level", "probabilities") == "logits"
    name = kind if alone or len(beside) == 1 else f"kd + {kind}"
    needed = [key for key, field in model.model_fields.items() if field.is_required()]
    if needed:
        return Method(name, "objective", None, refused=f"it needs {', '.join(needed)}, which only you can name")
    try:
        # Through the validators, which say what cannot stand together.
        objectives = [one.model_dump() for one in (*(() if alone else beside), model())]
        return Method(name, "objective", Training.model_validate({**base.model_dump(), "objectives": objectives}))
    except ValidationError as error:
        return Method(name, "objective", None, refused=error.errors()[0]["msg"])


def _strategy(kind: str, key: str, base: Training) -> Method:
    needed = [name for name, field in _kinds(key)[kind].model_fields.items() if field.is_required()]
    if needed:
        return Method(kind, "strategy", None, refused=f"it needs {', '.join(needed)}, which only you can name")
    try:
        training = Training.model_validate({**base.model_dump(), key: [{"kind": kind}]})
    except ValidationError as error:
        return Method(kind, "strategy", None, refused=error.errors()[0]["msg"])
    return Method(kind, "strategy", training)


def _kinds(key: str) -> dict[str, type[BaseModel]]:
    """The settings of each kind in this list of `training`."""
    return {
        str(next(iter(get_args(model.model_fields["kind"].annotation)))): model
        for model in _models(Training.model_fields[key].annotation)
    }


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings of a union, wherever it stands in an annotation."""
    if isinstance(annotation, type) and "kind" in getattr(annotation, "model_fields", {}):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
