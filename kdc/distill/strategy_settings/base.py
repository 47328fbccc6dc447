"""What the settings of a strategy say about it.

To add one that works inside the loop: its policy in a file of `strategies/`, its class here beside its family's, named in
`AnyStrategy` of `kdc/distill/settings.py`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel


class Strategy(BaseModel, frozen=True, extra="forbid"):
    """A strategy that works inside the loop, as a policy beside the objectives."""

    policy: ClassVar[str]
    """module:Class, imported when a training begins; made from (settings, student, context)."""
    stage: ClassVar[int] = 9
    """Where it stands among the strategies, whatever their order in the recipe, so that none undoes another's work:
    0 draws samples, 1 changes inputs (and has the teacher asked anew), 2 changes the teacher's answers, 3 mixes samples
    with their answers; 9: whatever only looks at the batch."""
    mixes: ClassVar[bool] = False
    """It gives a sample a share of another's label; a training has room for one such."""
