"""The product's planner on a sequence of arrivals, with its shipped defaults."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.packing.ledger import Ledger
from bench.packing.trace import Ints
from scheduler.demand import Outlook
from scheduler.packing import Packer
from scheduler.plan import Placement
from scheduler.problem import Job, Node, Problem
from scheduler.solve import solve

CHECK_EVERY = 1000
"""Every so many arrivals the cluster is read afresh, `solve` plans the arrival, and the plan must be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What happened at each arrival: whether it found a place, the cluster's draw after it in W, moves so far."""

    placed: np.ndarray
    watts: np.ndarray
    moves: Ints


def fill(nodes: Sequence[Node], jobs: Sequence[Job], outlook: tuple[Outlook, ...]) -> Filled:
    """Places one arrival after the other and moves nothing. Raises BrokenRule."""
    ledger = Ledger(nodes)
    packer = Packer(Problem(nodes=tuple(nodes), jobs=(), outlook=outlook))
    placed = np.zeros(len(jobs), dtype=np.bool_)
    watts = np.zeros(len(jobs))
    for number, job in enumerate(jobs):
        expected = solved(ledger, job, outlook) if number % CHECK_EVERY == CHECK_EVERY - 1 else None
        placement = packer.start(job)
        if expected is not None and expected != [placement]:
            raise AssertionError(f"{job.id}: solve() places it at {expected}, the running fleet at {placement}")
        if placement is not None:
            ledger.start(job, placement)
        placed[number], watts[number] = placement is not None, ledger.watts
    return Filled(placed=placed, watts=watts, moves=np.zeros(len(jobs), dtype=np.int64))


def solved(ledger: Ledger, job: Job, outlook: tuple[Outlook, ...]) -> list[Placement | None]:
    """What `solve` plans for the job from one read of the cluster; it verifies its plan itself."""
    nodes, running = ledger.snapshot()
    plan = solve(Problem(nodes=nodes, jobs=(job,), running=running, outlook=outlook))
    return list(plan.placements) or [None]


MODES = {"ours, no moves": fill}
"""Every mode is the same code with the same defaults, allowed to do more or less."""
