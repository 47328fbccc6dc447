"""The teacher's answers as the loop hands them out, for tests that hold one policy in their hands."""

from collections.abc import Sequence

import torch

from kdc.core.contract import Context
from kdc.distill.policy import Policy
from kdc.distill.settings import Training
from kdc.distill.teacher_answers import TeacherAnswers
from kdc.distill.views import View


def teacher_outputs(context: Context, view: View) -> torch.Tensor:
    """All of them to a view, [n, ...]."""
    with TeacherAnswers(context) as answers:
        return answers.of(view)[torch.arange(len(view.samples))]


def started(policies: Sequence[Policy], context: Context, training: Training | None = None) -> list[Policy]:
    """The policies, their training begun."""
    for policy in policies:
        policy.start(training or Training(), TeacherAnswers(context).of)
    return list(policies)
