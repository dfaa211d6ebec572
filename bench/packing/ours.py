"""The product's planner on a sequence of arrivals, with its shipped defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.packing.ledger import Ledger
from bench.packing.trace import Ints
from scheduler.demand import Outlook
from scheduler.moving import FULL, Mover
from scheduler.packing import Packer
from scheduler.plan import Placement
from scheduler.problem import Job, Node, Problem
from scheduler.solve import solve

IMPROVE_EVERY = 20
"""Arrivals between two looks for moves that save power."""

SPENT, SPENT_FULL = 0.42, 0.92
"""Share of the budget so far that such moves may use, below and from `scheduler.moving.FULL`: the rest is kept for
arrivals that find no room."""

CHECK_EVERY = 2500
"""Every so many arrivals the cluster is read afresh, `solve` plans the arrival, and the plan must be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What happened at each arrival: whether it found a place, the cluster's draw after it in W, moves so far."""

    placed: np.ndarray
    watts: np.ndarray
    moves: Ints


def fill(
    nodes: Sequence[Node], jobs: Sequence[Job], outlook: tuple[Outlook, ...], *, moves_per_arrival: float
) -> Filled:
    """Places one arrival after the other, with at most so many moves per arrival at every instant, counting all.

    Raises BrokenRule, and AssertionError if `solve` would have placed an arrival otherwise.
    """
    ledger = Ledger(nodes)
    packer = Packer(Problem(nodes=tuple(nodes), jobs=(), outlook=outlook))
    mover = Mover(packer)
    placed = np.zeros(len(jobs), dtype=np.bool_)
    watts = np.zeros(len(jobs))
    moves = np.zeros(len(jobs), dtype=np.int64)
    made = 0
    for number, job in enumerate(jobs):
        accrued = moves_per_arrival * (number + 1)
        expected = solved(ledger, job, outlook) if number % CHECK_EVERY == CHECK_EVERY - 1 else None
        placement = packer.start(job)
        if expected is not None and expected != [placement]:
            raise AssertionError(f"{job.id}: solve() places it at {expected}, the running fleet at {placement}")
        if placement is None and (room := mover.make_room(job, int(accrued) - made)) is not None:
            moved, placement = room
            made += _book_moves(ledger, moved)
        if placement is not None:
            ledger.start(job, placement)
        if moves_per_arrival and number % IMPROVE_EVERY == IMPROVE_EVERY - 1:
            share = SPENT_FULL if packer.fleet.load() >= FULL else SPENT
            made += _book_moves(ledger, mover.improve(int(share * accrued) - made))
        placed[number], watts[number], moves[number] = placement is not None, ledger.watts, made
    return Filled(placed=placed, watts=watts, moves=moves)


def _book_moves(ledger: Ledger, moved: Sequence[Placement]) -> int:
    """Books moves: all are stopped before any starts again."""
    last = {placement.job: placement for placement in moved}
    jobs = {name: ledger.running[name][0] for name in last}
    for name in last:
        ledger.stop(name)
    for name, placement in last.items():
        ledger.start(jobs[name], placement)
    return len(moved)


def solved(ledger: Ledger, job: Job, outlook: tuple[Outlook, ...]) -> list[Placement | None]:
    """What `solve` plans for the job from one read of the cluster; it verifies its plan itself."""
    nodes, running = ledger.snapshot()
    plan = solve(Problem(nodes=nodes, jobs=(job,), running=running, outlook=outlook))
    return list(plan.placements) or [None]


MODES = {
    "ours-no-moves": partial(fill, moves_per_arrival=0.0),
    "ours-0.1-moves": partial(fill, moves_per_arrival=0.1),
}
"""Every mode is the same code with the same defaults, allowed to do more or less."""
