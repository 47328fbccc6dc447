"""The optimizers that a recipe names, and the one of them that knows the labels' gradients from the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from kdc.distill.optimizer_settings import AdamW, Dot, Sgd

Groups = list[dict[str, Any]]


class DistillationOriented(torch.optim.Optimizer):
    """SGD with two momentum buffers, one of the labels' gradients and one of the teacher's.

    With the gradients g_labels and g_teacher of both losses, weight decay w, momentum m and delta d, each step does
    v_labels = (m - d) v_labels + g_labels + w p, v_teacher = (m + d) v_teacher + g_teacher, p = p - rate (v_labels +
    v_teacher). A parameter that only one of the losses reaches has the momentum m.

    What is kept is the sum of both buffers and the teacher's, and the gradient of the whole loss is taken in one
    backward, so that delta = 0 is SGD to the bit. The teacher's own gradient costs a second backward.
    Source: DOT, Zhao et al. 2023, arXiv:2307.08436; held against the authors' code in megvii-research/mdistiller.
    """

    def __init__(self, groups: Groups, lr: float, momentum: float, delta: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": 0.0})
        self._of_teacher: dict[torch.Tensor, torch.Tensor] = {}
        self._of_labels: set[torch.Tensor] = set()

    def tell_apart(self, of_labels: torch.Tensor | None, of_teacher: torch.Tensor | None) -> None:
        """Add up the teacher's part of the gradients; to be called before the backward of the whole loss."""
        if of_labels is not None:
            self._of_labels |= reached(of_labels)
        if of_teacher is None:
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for parameter, found in zip(
            parameters, torch.autograd.grad(of_teacher, parameters, retain_graph=True, allow_unused=True), strict=True
        ):
            if found is not None:
                before = self._of_teacher.get(parameter)
                self._of_teacher[parameter] = found if before is None else before + found

    def scale(self, share: torch.Tensor) -> None:
        """What was done to the parameters' gradients, to hold a bound on their norm, done to the teacher's part."""
        self._of_teacher = {parameter: found * share for parameter, found in self._of_teacher.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, the teacher's part too."""
        super().zero_grad(set_to_none)
        self._of_teacher.clear()
        self._of_labels.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients as they stand. closure: none is taken."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
        state = self.state[parameter]
        if not state:
            state["total"], state["of_teacher"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        of_teacher = self._of_teacher.get(parameter)
        both = of_teacher is not None and parameter in self._of_labels
        state["total"], state["of_teacher"] = two_momenta(
            state["total"],
            state["of_teacher"],
            gradient,
            torch.zeros_like(parameter) if of_teacher is None else of_teacher,
            group["momentum"],
            group["delta"] if both else 0.0,
        )
        parameter.add_(state["total"], alpha=-group["lr"])


def two_momenta(
    total: torch.Tensor,
    of_teacher: torch.Tensor,
    gradient: torch.Tensor,
    teacher_gradient: torch.Tensor,
    momentum: float,
    delta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """DOT's buffers after a step: the sum of both, and the teacher's. All tensors of one shape.

    Args: total: v_labels + v_teacher before the step. gradient: of the whole loss; teacher_gradient: of its part.
    Returns: (m - d) v_labels + (m + d) v_teacher + gradient, written as m total + gradient + d (v_teacher - v_labels);
        and (m + d) v_teacher + teacher_gradient.
    """
    return (
        momentum * total + gradient + delta * (2 * of_teacher - total),
        (momentum + delta) * of_teacher + teacher_gradient,
    )


def reached(loss: torch.Tensor) -> set[torch.Tensor]:
    """The leaves that a loss has a gradient for."""
    found: set[torch.Tensor] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def optimizer(
    settings: AdamW | Sgd | Dot, groups: Iterable[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over these groups of parameters."""
    match settings:
        case AdamW():
            return torch.optim.AdamW(groups, lr=learning_rate)
        case Sgd():
            return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
        case Dot():
            return DistillationOriented(list(groups), learning_rate, settings.momentum, settings.delta)
