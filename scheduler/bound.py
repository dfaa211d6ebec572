"""Proven lower bounds of a pool's waiting and charge, from its linear relaxation and what integers allow on top."""

import math
from collections.abc import Sequence

from scheduler.candidates import Candidates
from scheduler.lp import Guide, Known, Relaxation

ROUNDING = 1e-9
"""What a bound gives away, relative to the largest value it can have, so that no rounding of sums makes it false."""


def waiting_floor(pool: Candidates, relaxation: Relaxation, tier: int, known: Sequence[Known]) -> int:
    """Lower bound of a tier's waiting in all plans whose first tiers wait as `known`, in thousandths of W * devices.

    Waiting is a sum of whole start weights, so the bound rises to the next multiple of their common divisor.
    """
    weights = [candidate.stake.weight for candidate in pool.line if candidate.tier == tier]
    if not weights:
        return 0
    step = math.gcd(*weights)
    proven = relaxation.waiting_floor(tier, known) - ROUNDING * sum(weights)
    return max(0, math.ceil(proven / step)) * step


def charge_floor(relaxation: Relaxation, known: Sequence[Known]) -> tuple[float, Guide]:
    """Lower bound of the charge, in J, of all plans whose first tiers wait as `known`, and the one it is of."""
    proven_j, guide = relaxation.charge_floor(known)
    return max(0.0, proven_j - ROUNDING * relaxation.waits_j), guide
