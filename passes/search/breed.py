"""Which structures are looked at: drawn at first, then bred from the better half.

Source of the scheme: DisWOT's evolutionary search (Dong et al. 2023, arXiv:2303.15678).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from kdc.core.contract import Context, named_seed
from passes.search.examine import Examiner
from passes.search.journal import Candidate
from passes.search.members import Members
from passes.search.spaces import Student, key

if TYPE_CHECKING:
    from passes.search import Search

TOGETHER = 4  # candidates timed in one go: few, so that what they teach of the limit guides the next
DRAWS = 60  # drawn for each one wanted before the space is taken to be exhausted
GROWN, MUTATED = 0.5, 0.25  # shares of the children; growing leads to the budget's limit, where the best students are
LOOKED = 4  # looked at, timed ones too, for each one wanted


def breed(settings: Search, context: Context, members: Members, examiner: Examiner) -> list[Candidate]:
    """Candidates that fit, the best rank first; deterministic for the same seed and the same measurements."""
    # From the smallest members on, each time: what the journal holds of later candidates must not change the draws.
    pool = {candidate.key: candidate for candidate in examiner.look(members.smallest()) if candidate.fits}
    first = Random(named_seed(context.seed, context.step, "draw"))
    timed = context.portion(1, 2)  # where time is limited: the distillations have the larger part of it
    in_time = _fill(pool, settings.population, examiner, lambda: members.draw(first), timed)
    for generation in range(settings.generations):
        parents = ranked(pool)[: max(2, settings.population // 2)]
        if not parents or not in_time:
            break
        random = Random(named_seed(context.seed, context.step, "generation", generation))

        def child(parents: list[Candidate] = parents, random: Random = random) -> Student:
            one, other = random.choice(parents), random.choice(parents)
            chance = random.random()
            if chance < GROWN:
                return members.grow(one.student, random)
            if one is other or chance < GROWN + MUTATED:
                return members.mutate(one.student, random)
            return members.cross(one.student, other.student, random)

        in_time = _fill(pool, len(pool) + settings.population // 2, examiner, child, timed)
    return ranked(pool)


def ranked(pool: dict[str, Candidate]) -> list[Candidate]:
    """The families in turn, each in the order of its fronts by rank and MACs.

    Ranks of unlike families do not compare. Within one, the best rank alone breeds extremes, such as all parameters in
    the last layers: so a candidate is kept back only by one that is above it in rank and does more work, too.
    """
    families: dict[str, list[Candidate]] = {}
    for candidate in sorted(pool.values(), key=lambda c: (-c.score, c.key)):
        families.setdefault(candidate.family, []).append(candidate)
    ordered = [[one for own in _fronts(members) for one in own] for members in families.values()]
    depth = max(map(len, ordered), default=0)
    return [own[place] for place in range(depth) for own in ordered if place < len(own)]


def _fronts(members: list[Candidate]) -> list[list[Candidate]]:
    """Fronts by rank and MACs, the first one outermost; each from its middle on, so that its beginning is spread over it."""
    fronts: list[list[Candidate]] = []
    left = members
    while left:
        front = [one for one in left if not any(o.score > one.score and o.macs > one.macs for o in left)]
        fronts.append([front[place] for place in _spread(len(front))])
        taken = {one.key for one in front}
        left = [one for one in left if one.key not in taken]
    return fronts


def _spread(count: int) -> list[int]:
    """Places 0 to count - 1 so that every beginning of the list is spread over them: the middle, then the quarters."""
    order: list[int] = []
    gaps = [(-1, count)]
    while gaps:
        low, high = gaps.pop(0)
        middle = (low + high) // 2
        if low < middle < high:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return order


def _fill(
    pool: dict[str, Candidate], wanted: int, examiner: Examiner, propose: Callable[[], Student], timed: Context
) -> bool:
    """Look at proposals until the pool holds as many that fit, or the proposals bring nothing new.

    Returns: whether there is time for more.
    """
    met = set(pool)
    missing = wanted - len(pool)
    draws, looked = DRAWS * missing, LOOKED * missing
    while len(pool) < wanted and draws > 0 and looked > 0:
        known = len(examiner.journal.all())
        if timed.out_of_time(f"candidates behind look {examiner.looks}", f"the search looked at {known} candidates"):
            return False
        batch: list[Student] = []
        while len(batch) < min(TOGETHER, looked) and draws > 0:
            draws -= 1
            student = propose()
            if key(student) in met:
                continue
            met.add(key(student))
            if examiner.journal.find(student) is None:
                sized = examiner.sized(student)
                if sized.failure is None and (examiner.hopeless(sized) or examiner.needless(sized)):
                    continue
            batch.append(student)
        looked -= len(batch)
        pool.update((candidate.key, candidate) for candidate in examiner.look(batch) if candidate.fits)
    return True
