"""The product's planner on a sequence of arrivals, with its shipped defaults."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.packing.ledger import Ledger
from bench.packing.measure import LOADS
from bench.packing.trace import Ints
from scheduler.classes import count_demands
from scheduler.demand import PERIOD, WHOLE_DEVICE, Outlook
from scheduler.learning import expected_mix, outlook_beside, variation
from scheduler.moving import FULL, Mover
from scheduler.packing import Packer
from scheduler.plan import Placement, Plan
from scheduler.problem import Job, Node, Problem
from scheduler.solve import solve

NOTICE = 0.03
"""Variation between the mix that is expected and the one that the outlook is for, from which on it is learned anew."""

IMPROVE_EVERY = 20
"""Arrivals between two looks for moves that save power."""

SPENT = 0.42
"""Share of the budget so far that such moves may use."""

ANEW_EVERY, SPENT_ANEW = 800, 0.6
"""Arrivals between two looks for nodes that are better planned anew, and the share of the budget so far that all moves
may use with those. From `scheduler.moving.FULL` on what is left is kept for arrivals that find no room.
"""

RETRY = 25
"""Arrivals after which nodes are planned anew for another one that finds no room, when the last time did not help;
twice as many each time that it does not help again."""

CHECK_EVERY = 2500
"""Every so many arrivals the cluster is read afresh, `solve` plans the arrival, and the plan must be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """What happened at each arrival: whether it found a place, the cluster's draw after it in W, moves so far."""

    placed: np.ndarray
    watts: np.ndarray
    moves: Ints

    @classmethod
    def of(cls, arrivals: int) -> "Filled":
        """Nothing yet."""
        return cls(
            placed=np.zeros(arrivals, dtype=np.bool_),
            watts=np.zeros(arrivals),
            moves=np.zeros(arrivals, dtype=np.int64),
        )

    def note(self, number: int, placed: bool, planner: "Planner") -> None:
        """After an arrival."""
        self.placed[number], self.watts[number], self.moves[number] = placed, planner.ledger.watts, planner.moves


class Planner:
    """The planner beside the books: what it knows of the cluster, and what it expects."""

    def __init__(self, nodes: Sequence[Node], outlook: tuple[Outlook, ...]) -> None:
        self.ledger = Ledger(nodes)
        self.outlook = outlook
        self.moves = 0
        self._tries_from, self._pause = 0, RETRY
        self._periods = [outlook[0].mix() if outlook else {}]
        self._planned = expected_mix(self._periods)
        self._period: list[Job] = []
        self._read()

    def learn(self, job: Job) -> None:
        """Notes an arrival. After each period, if what came leads to expect another mix, the outlook is learned anew:
        what is known of history counts as the members that the first outlook places.
        """
        self._period.append(job)
        if not self.outlook or len(self._period) < PERIOD:
            return
        self._periods.append(count_demands(self._period))
        self._period = []
        mix = expected_mix(self._periods)
        if variation(mix, self._planned) > NOTICE:
            self._planned = mix
            self.outlook = outlook_beside(self.packer, mix) or self.outlook
            self._read()

    def start(self, job: Job, moves: int) -> bool:
        """Places an arrival, if need be with up to so many moves."""
        placement = self.packer.start(job)
        if placement is None and (room := self.mover.make_room(job, moves)) is not None:
            moved, placement = room
            self.moves += book_moves(self.ledger, moved)
        if placement is not None:
            self.ledger.start(job, placement)
        return placement is not None

    def improve(self, moves: int) -> None:
        """Moves that save power, up to so many."""
        self.moves += book_moves(self.ledger, self.mover.improve(moves))

    def solved(self, *jobs: Job, moves: int = 0) -> Plan:
        """What `solve` plans for the jobs from one read of the cluster, nodes planned anew if moves are allowed. It
        verifies its plan itself.
        """
        nodes, running = self.ledger.snapshot()
        anew = moves > 0
        return solve(Problem(nodes=nodes, jobs=jobs, running=running, outlook=self.outlook, moves=moves, anew=anew))

    def repack(self, *jobs: Job, moves: int) -> bool:
        """Plans nodes anew, with these jobs if that makes room for them; whether all of them started."""
        if moves < 1:
            return False
        plan = self.solved(*jobs, moves=moves)
        self.moves += book_moves(self.ledger, plan.moves)
        started = {placement.job: placement for placement in plan.placements}
        for job in jobs:
            if job.id in started:
                self.ledger.start(job, started[job.id])
        self._read()
        return len(started) == len(jobs)

    def make_room(self, number: int, job: Job, moves: int) -> bool:
        """Plans nodes anew for an arrival, if that is not hopeless after the last time; whether it started."""
        if number < self._tries_from or moves < 1:
            return False
        started = self.repack(job, moves=moves)
        self._pause = RETRY if started else 2 * self._pause
        self._tries_from = number if started else number + self._pause
        return started

    def _read(self) -> None:
        nodes, running = self.ledger.snapshot()
        self.packer = Packer(Problem(nodes=nodes, jobs=(), running=running, outlook=self.outlook))
        self.mover = Mover(self.packer)


def fill(
    nodes: Sequence[Node], jobs: Sequence[Job], outlook: tuple[Outlook, ...], *, moves_per_arrival: float
) -> Filled:
    """Places one arrival after the other, with at most so many moves per arrival at every instant, counting all.

    Raises BrokenRule, and AssertionError if `solve` would have placed an arrival otherwise.
    """
    planner = Planner(nodes, outlook)
    filled = Filled.of(len(jobs))
    for number, job in enumerate(jobs):
        planner.learn(job)
        accrued = moves_per_arrival * (number + 1)
        expected = planner.solved(job).placements if number % CHECK_EVERY == CHECK_EVERY - 1 else ()
        placed = planner.start(job, int(accrued) - planner.moves)
        if expected and (not placed or expected[0] != planner.ledger.running[job.id][1]):
            raise AssertionError(f"{job.id}: solve() places it at {expected[0]}, the running fleet does not")
        placed = placed or planner.make_room(number, job, int(accrued) - planner.moves)
        if planner.packer.fleet.load() < FULL:
            if number % IMPROVE_EVERY == IMPROVE_EVERY - 1:
                planner.improve(int(SPENT * accrued) - planner.moves)
            if number % ANEW_EVERY == ANEW_EVERY - 1:
                planner.repack(moves=int(SPENT_ANEW * accrued) - planner.moves)
        filled.note(number, placed, planner)
    return filled


def fill_and_repack(nodes: Sequence[Node], jobs: Sequence[Job], outlook: tuple[Outlook, ...]) -> Filled:
    """Places one arrival after the other, and packs the cluster anew at the loads where power is read and when an
    arrival finds no room, then not again for `RETRY` arrivals if that did not help.
    """
    planner = Planner(nodes, outlook)
    filled = Filled.of(len(jobs))
    sizes = np.array([job.shapes[0].devices * job.shapes[0].share for job in jobs])
    capacity = sum(len(node.devices) for node in nodes) * WHOLE_DEVICE
    stops = set((np.searchsorted(np.cumsum(sizes), np.array(LOADS) / 100 * capacity, side="right") - 1).tolist())
    for number, job in enumerate(jobs):
        planner.learn(job)
        placed = planner.start(job, 0) or planner.make_room(number, job, len(jobs))
        if number in stops:
            planner.repack(moves=len(jobs))
        filled.note(number, placed, planner)
    return filled


def book_moves(ledger: Ledger, moved: Sequence[Placement]) -> int:
    """Books moves: all are stopped before any starts again."""
    last = {placement.job: placement for placement in moved}
    jobs = {name: ledger.running[name][0] for name in last}
    for name in last:
        ledger.stop(name)
    for name, placement in last.items():
        ledger.start(jobs[name], placement)
    return len(moved)


MODES = {
    "ours-no-moves": partial(fill, moves_per_arrival=0.0),
    "ours-0.1-moves": partial(fill, moves_per_arrival=0.1),
    "ours-re-pack": fill_and_repack,
}
"""Every mode is the same code with the same defaults, allowed to do more or less."""
