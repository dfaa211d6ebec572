"""Best choices for every pool: first whom to keep waiting, tier by tier, then at what cost; and a bound of the cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.bound import charge_floor, waiting_floor
from scheduler.candidates import Candidates, Choices, charge_j, ends_of, geometric, places, waiting_of
from scheduler.cpsat import Answer, Effort, least_charge, least_waiting
from scheduler.greedy import complete, repack
from scheduler.lp import Known, relax
from scheduler.problem import Budget

PROVEN = 1e-7
"""Relative difference of charge and bound up to which choices count as proven optimal."""

HINT_WITHIN = 0.02
"""A start that is further than this from the bound misleads the solver more than it helps."""

MAX_PLACES = 60_000
"""A pool of more places than this is left to the greedy rules and the bound: building its model alone takes seconds."""

COARSE_ENDS = 16
"""Ends of jobs in the small model: enough to tell a short job from a long one."""

TIER_SHARE = 0.25
"""Share of what is left of the budget that one tier of one pool may use to be settled; most need a tenth of it."""

LEAST_SHARE = 0.1
"""Share of what is left that a pool gets at least to be polished: less would end before the first solution."""

COARSE_SHARE = 0.9
"""Share of a pool's effort that goes to the small model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best choices known for a pool.

    `bound_j` is a lower bound of the charge (`scheduler.candidates.charge_j`) of every plan that respects precedence.
    `settled` tells that the waiting of every tier is proven least, `proven` that the charge is proven least too.
    """

    choices: Choices
    bound_j: float
    settled: bool
    proven: bool


class Allowance:
    """What is left of a budget while searches spend it. `stopped` tells that a watchdog ended one of them."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.deterministic_s = budget.deterministic_s
        self.wall_s = budget.watchdog_s
        self.stopped = False

    def effort(self, share: float) -> Effort | None:
        """Limits for one search that may use this share of what is left; None when nothing is."""
        if self.deterministic_s <= 0 or self.wall_s <= 0:
            return None
        return Effort(
            deterministic_s=self.deterministic_s * share,
            wall_s=self.wall_s,
            workers=self._budget.workers,
            seed=self._budget.seed,
        )

    def spend(self, answer: Answer) -> None:
        """Takes what a search used."""
        self.deterministic_s -= answer.deterministic_s
        self.wall_s -= answer.wall_s
        self.stopped = self.stopped or answer.stopped


def search(pools: Sequence[Candidates], starts: Sequence[Choices], allowance: Allowance) -> list[Found]:
    """The best choices found for each pool, never worse than its start.

    Who waits is settled everywhere first, which is cheap; then effort goes where most joules are undecided, the pools
    with fewest first, because what they leave over is for the others.
    """
    found = [settle(pool, start, allowance) for pool, start in zip(pools, starts, strict=True)]
    open_j = [charge_j(pool, part.choices) - part.bound_j for pool, part in zip(pools, found, strict=True)]
    left_j = sum(open_j)
    for number in sorted(range(len(pools)), key=lambda number: (open_j[number], number)):
        if not found[number].proven and left_j > 0 and places(pools[number]) <= MAX_PLACES:
            share = max(LEAST_SHARE, open_j[number] / left_j)
            found[number] = polish(pools[number], found[number], allowance, share)
        left_j -= open_j[number]
    return found


def settle(pool: Candidates, start: Choices, allowance: Allowance) -> Found:
    """Lets as little as possible wait, tier by tier, and repacks the result so that it costs less.

    The bound speaks of the plans that respect precedence. Their waiting equals ours as far down as it is proven least;
    in the tier after that it lies between the proven bound and ours; further down nothing is known of it.
    """
    best = start
    if charge_j(pool, best) == 0.0 and not any(waiting_of(pool, best)):
        return Found(choices=best, bound_j=0.0, settled=True, proven=True)
    relaxation = relax(pool)
    known: list[Known] = []
    for tier in range(pool.tiers):
        settled = len(known) == tier and all(fact.floor == fact.cap for fact in known)
        waits = waiting_of(pool, best)
        floor = waiting_floor(pool, relaxation, tier, known) if settled and waits[tier] else 0
        effort = allowance.effort(TIER_SHARE)
        if waits[tier] > floor and effort is not None and places(pool) <= MAX_PLACES:
            answer = least_waiting(pool, tier, waits[:tier], floor, best, effort)
            allowance.spend(answer)
            best = _better(pool, best, answer.choices)
            floor = max(floor, math.ceil(answer.bound))
        if settled:
            known.append(Known(floor=floor, cap=waiting_of(pool, best)[tier]))
    for keep_shapes in (True, False):
        best = _better(pool, best, repack(pool, best, keep_shapes=keep_shapes))
    settled = len(known) == pool.tiers and all(fact.floor == fact.cap for fact in known)
    charge, bound_j = charge_j(pool, best), charge_floor(relaxation, known)
    return Found(choices=best, bound_j=bound_j, settled=settled, proven=settled and charge - bound_j <= PROVEN * charge)


def polish(pool: Candidates, found: Found, allowance: Allowance, share: float) -> Found:
    """Lowers the charge with nobody waiting more, or proves that it cannot be lowered."""
    best, bound_j, proven = found.choices, found.bound_j, found.proven
    for part, ends in _models(pool):
        effort = allowance.effort(share * part)
        if proven or effort is None:
            break
        charge = charge_j(pool, best)
        hint = best if charge - bound_j <= HINT_WITHIN * charge else None
        answer = least_charge(pool, waiting_of(pool, best), ends, hint, effort)
        allowance.spend(answer)
        best = _better(pool, best, answer.choices)
        if found.settled and all(end == priced for end, priced in ends.items()):
            bound_j = max(bound_j, answer.bound)
            proven = answer.optimal
    return Found(choices=best, bound_j=bound_j, settled=found.settled, proven=proven)


def _better(pool: Candidates, best: Choices, other: Choices | None) -> Choices:
    """`other`, with whatever still fits beside it, where that beats `best`: in waiting first, then in charge."""
    if other is None:
        return best
    filled = complete(pool, other)
    if (waiting_of(pool, filled), charge_j(pool, filled)) < (waiting_of(pool, best), charge_j(pool, best)):
        return filled
    return best


def _models(pool: Candidates) -> list[tuple[float, dict[float, float]]]:
    """How job ends are priced, and the share of effort for it: coarsely to get near, then exactly."""
    ends = ends_of(pool)
    exact = {end: end for end in ends}
    grid = geometric(ends, COARSE_ENDS)
    if grid == ends:
        return [(1.0, exact)]
    coarse = {end: min(grid, key=lambda near: abs(math.log(near / end))) for end in ends}
    return [(COARSE_SHARE, coarse), (1.0, exact)]
