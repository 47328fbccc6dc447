"""Which objectives can do without what: equal classes in both models, or the insides of the teacher. Needs no torch."""

from __future__ import annotations

from typing import Any, get_args

from kdc.distill.feature_settings import AnyFeatureObjective
from kdc.distill.logit_settings import OutputObjective


def across_classes() -> tuple[str, ...]:
    """Kinds that need not have the same classes in student and teacher."""
    return tuple(_kind(settings) for settings in _all() if settings.bridges)


def from_predictions() -> tuple[str, ...]:
    """Kinds that need of the teacher what it predicts, and nothing of how."""
    return tuple(_kind(settings) for settings in _all() if not settings.inside_teacher)


def _all() -> tuple[Any, ...]:
    return *get_args(OutputObjective), *get_args(AnyFeatureObjective)


def _kind(settings: Any) -> str:
    kind: str = settings.model_fields["kind"].default
    return kind
