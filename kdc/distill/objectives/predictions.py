"""Teachers that tell only what they predict: a class, or the probabilities of a few."""

from __future__ import annotations

import torch

from kdc.core.errors import ModelError
from kdc.distill.objectives.distributions import labelled, log_probabilities, matched, per_example, wide


def predictions(student: torch.Tensor, teacher: torch.Tensor, top: int, hard: bool) -> torch.Tensor:
    """What a student could learn from this teacher if it told its `top` classes alone.

    Args: student, teacher: logits, [batch, ..., classes]. top: how many classes it names, >= 1. hard: no probabilities,
        the likeliest class only.
    Returns: nats, [batch].
    Raises: ModelError where the shapes differ.
    Source: as in Ma et al. 2024 (MEKD), arXiv:2205.10490, who call these soft and hard responses. Their generator,
    which turns outputs back into images to be compared, is `kdc.distill.emulation`.
    """
    student, teacher = matched(student, teacher)
    probabilities, classes = teacher.softmax(-1).topk(min(top, teacher.shape[-1]), dim=-1)
    if hard:
        return chosen_class(student, classes[..., 0])
    return top_probabilities(student, classes, probabilities)


def chosen_class(student: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the class that the teacher chose: logits [batch, ..., classes], numbers [batch, ...] -> [batch].

    Raises: ModelError where there is not one class for each row of logits.
    """
    chosen = labelled(student, classes)
    return per_example(-log_probabilities(wide(student), 1.0).gather(-1, chosen).squeeze(-1))


def top_probabilities(student: torch.Tensor, classes: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """KL over the classes that were told and one more outcome, "another class", which has what is left of 1.

    It says nothing of how the rest is spread, for nothing is known of it. With all classes told it is the divergence
    itself, KL(p || q).

    Args: student: logits, [batch, ..., classes]. classes, probabilities: the teacher's, [batch, ..., told]; a row's
        probabilities sum to 1 at most, up to rounding.
    Returns: nats, [batch]; the mean over the dimensions between, if any; 0 where the student gives the same.
    Raises: ModelError where the shapes do not fit, or more classes are told than the student has.
    """
    told = classes.shape[-1]
    if classes.shape != probabilities.shape or classes.shape[:-1] != student.shape[:-1] or told > student.shape[-1]:
        raise ModelError(
            f"the student's logits are {list(student.shape)}, the teacher's classes {list(classes.shape)} and their "
            f"probabilities {list(probabilities.shape)}; expected [..., told] twice, told at most {student.shape[-1]}",
            do="give one row of classes and one of probabilities for each row of logits",
        )
    log_q = log_probabilities(wide(student), 1.0)
    p, told_q = wide(probabilities), log_q.gather(-1, classes)
    value = (torch.special.xlogy(p, p) - p * told_q).sum(-1)
    if told < student.shape[-1]:
        other = (1 - p.sum(-1)).clamp(min=0)
        log_other = log_q.scatter(-1, classes, -torch.inf).logsumexp(-1)
        value = value + torch.special.xlogy(other, other) - other * log_other
    return per_example(value)
