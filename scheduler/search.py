"""Best choices for every pool: first whom to keep waiting, tier by tier, then at what cost; and a bound of the cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.bound import charge_floor, waiting_floor
from scheduler.candidates import Candidates, Choices, charge_j, places, thinned, waiting_of
from scheduler.cpsat import Answer, Effort, least_charge, least_waiting
from scheduler.greedy import complete, follow, repack
from scheduler.lp import NO_GUIDE, Guide, Known, Relaxation, relax
from scheduler.problem import Budget

PROVEN = 1e-7
"""Relative difference of charge and bound up to which choices count as proven optimal."""

HINT_WITHIN = 0.02
"""A start that is further than this from the bound misleads the solver more than it helps."""

MAX_PLACES = 5_000
"""A pool of more places than this is searched thinned only: a model of all of it gets nowhere within the budget."""

TIER_SHARE = 0.25
"""Share of what is left of the budget that one tier of one pool may use to be settled; most need a tenth of it."""

LEAST_SHARE = 0.1
"""Share of what is left that a pool gets at least to be polished: less would end before the first solution."""

THIN_SHARE = 0.5
"""Share of a pool's effort that goes to the thinned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best choices known for a pool.

    `bound_j` is a lower bound of the charge (`scheduler.candidates.charge_j`) of every plan that respects precedence.
    `settled` tells that the waiting of every tier is proven least, `proven` that the charge is proven least too.
    `guide` is the cheapest fractional plan with the same waiting.
    """

    choices: Choices
    bound_j: float
    settled: bool
    proven: bool
    guide: Guide


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
        if not found[number].proven and left_j > 0:
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
        return Found(choices=best, bound_j=0.0, settled=True, proven=True, guide=NO_GUIDE)
    relaxation = relax(pool)
    facts: list[Known] = []
    for tier in range(pool.tiers):
        best, floor = _settle_tier(pool, relaxation, tier, facts, best, allowance)
        facts.append(Known(floor=floor, cap=waiting_of(pool, best)[tier]))
    open_tiers = [tier for tier, fact in enumerate(facts) if fact.floor < fact.cap]
    known = facts[: open_tiers[0] + 1] if open_tiers else facts
    bound_j, guide = charge_floor(relaxation, known)
    if open_tiers:
        _, guide = charge_floor(relaxation, [Known(floor=waits, cap=waits) for waits in waiting_of(pool, best)])
    best = _guided(pool, guide, best)
    for keep_shapes in (True, False):
        best = _better(pool, best, repack(pool, best, keep_shapes=keep_shapes))
    proven = not open_tiers and _reached(pool, best, bound_j)
    return Found(choices=best, bound_j=bound_j, settled=not open_tiers, proven=proven, guide=guide)


def _settle_tier(
    pool: Candidates, relaxation: Relaxation, tier: int, facts: Sequence[Known], best: Choices, allowance: Allowance
) -> tuple[Choices, int]:
    """Better choices, and a lower bound of the tier's waiting in all plans whose earlier tiers wait as `facts`."""
    if waiting_of(pool, best)[tier] == 0:
        return best, 0
    floor = waiting_floor(pool, relaxation, tier, facts)
    if waiting_of(pool, best)[tier] <= floor:
        return best, floor
    _, guide = charge_floor(relaxation, [*facts, Known(floor=floor, cap=floor)])
    best = _guided(pool, guide, best)
    waits = waiting_of(pool, best)
    effort = allowance.effort(TIER_SHARE)
    if waits[tier] <= floor or effort is None:
        return best, floor
    whole = places(pool) <= MAX_PLACES
    model = pool if whole else thinned(pool, guide.places, best)
    answer = least_waiting(model, tier, waits[:tier], floor, best, effort)
    allowance.spend(answer)
    return _better(pool, best, answer.choices), max(floor, math.ceil(answer.bound)) if whole else floor


def _guided(pool: Candidates, guide: Guide, best: Choices) -> Choices:
    """What follows a fractional plan, where that is better than `best`."""
    for sure_first in (False, True):
        best = _better(pool, best, follow(pool, guide.starts, sure_first=sure_first))
    return best


def polish(pool: Candidates, found: Found, allowance: Allowance, share: float) -> Found:
    """Lowers the charge with nobody waiting more, or proves that it cannot be lowered.

    First among the places that the cheapest fractional plan uses, where good choices are found soon; then among all,
    which proves.
    """
    best, bound_j, proven = found.choices, found.bound_j, found.proven
    whole = places(pool) <= MAX_PLACES
    for thin in (True, False) if whole else (True,):
        effort = allowance.effort(share * THIN_SHARE if thin and whole else share)
        if proven or effort is None:
            break
        model = thinned(pool, found.guide.places, best) if thin else pool
        charge = charge_j(pool, best)
        hint = best if charge - bound_j <= HINT_WITHIN * charge else None
        answer = least_charge(model, waiting_of(pool, best), hint, effort)
        allowance.spend(answer)
        best = _better(pool, best, answer.choices)
        if not thin and found.settled:
            bound_j = max(bound_j, answer.bound)
            proven = answer.optimal
        proven = proven or (found.settled and _reached(pool, best, bound_j))
    return Found(choices=best, bound_j=bound_j, settled=found.settled, proven=proven, guide=found.guide)


def _reached(pool: Candidates, choices: Choices, bound_j: float) -> bool:
    charge = charge_j(pool, choices)
    return charge - bound_j <= PROVEN * charge


def _better(pool: Candidates, best: Choices, other: Choices | None) -> Choices:
    """`other`, with whatever still fits beside it, where that beats `best`: in waiting first, then in charge."""
    if other is None:
        return best
    filled = complete(pool, other)
    if (waiting_of(pool, filled), charge_j(pool, filled)) < (waiting_of(pool, best), charge_j(pool, best)):
        return filled
    return best
