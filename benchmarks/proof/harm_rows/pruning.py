"""Claims of this part of the proof."""

from rows import Claim

CLAIMS: list[Claim] = []
