"""Ours, and policies to compare with: what is usual today, each as a `scheduler.simulate.Planner`.

All know estimates only. The others take a job's shapes in the order given (the fastest first), prefer nodes that are
on, and leave it to the idle timer to switch empty nodes off.
"""

# scipy ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog

from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Job, Node, Problem, Shape
from scheduler.simulate import Decision, Planner
from scheduler.solve import solve

Rank = Callable[["Spot", Shape], tuple[float, ...]]
"""Which spot a member takes: the one of the smallest rank."""


LEAST_SHARE = 1e-6
"""A smaller share of a device's time is a rounding error."""


@dataclass(slots=True)
class Spot:
    """A node while a policy fills it: ids of its free devices, and when what runs there is expected to end (s)."""

    node: Node
    free: list[str]
    on: bool

    @property
    def kind(self) -> str:
        return self.node.devices[0].kind


def ours(problem: Problem) -> Decision:
    """The product's planner with its shipped defaults."""
    plan = solve(problem)
    off = tuple(step.node for step in plan.power_steps if not step.on)
    return Decision(placements=plan.placements, off=off, moves=plan.moves)


def as_asked(problem: Problem) -> Decision:
    """Ours where elastic jobs are rigid: of each job only the shapes of the size that its first has."""
    kept = {
        job.id: [index for index, shape in enumerate(job.shapes) if shape.size == job.shapes[0].size]
        for job in problem.jobs
    }
    rigid = [replace(job, shapes=tuple(job.shapes[index] for index in kept[job.id])) for job in problem.jobs]
    decision = ours(replace(problem, jobs=tuple(rigid)))
    placements = (replace(placement, shape=kept[placement.job][placement.shape]) for placement in decision.placements)
    return replace(decision, placements=tuple(placements))


def spread(spot: Spot, shape: Shape) -> tuple[float, ...]:
    """Most free devices first."""
    return (not spot.on, -len(spot.free))


def best_fit(spot: Spot, shape: Shape) -> tuple[float, ...]:
    """Fewest free devices first."""
    return (not spot.on, len(spot.free))


def fifo(rank: Rank) -> Planner:
    """First come, first served: nobody overtakes."""

    def plan(problem: Problem) -> Decision:
        spots = _spots(problem)
        placements: list[Placement] = []
        for job in problem.jobs:
            placement = _place(job, spots, rank)
            if placement is None:
                break
            placements.append(placement)
        return _decision(problem, placements)

    return plan


def shortest_first(problem: Problem) -> Decision:
    """Whoever is expected to need fewest device-seconds goes first; whatever fits starts."""
    spots = _spots(problem)
    line = sorted(problem.jobs, key=lambda job: min(shape.size * shape.run_s for shape in job.shapes))
    placed = [_place(job, spots, best_fit) for job in line]
    return _decision(problem, [placement for placement in placed if placement is not None])


def easy(problem: Problem) -> Decision:
    """EASY backfilling: the first that has to wait gets a reservation, at the earliest time at which what runs is
    expected to leave it room; others may overtake where that does not put it off.
    """
    spots = _spots(problem)
    placements: list[Placement] = []
    waiting = list(problem.jobs)
    while waiting:
        placement = _place(waiting[0], spots, best_fit)
        if placement is None:
            break
        placements.append(placement)
        waiting.pop(0)
    if waiting:
        starts_s, reserved = _reservation(problem, waiting[0], spots, placements)
        kept = [spot for spot in spots if spot.node.id not in reserved]
        for job in waiting[1:]:
            placement = _place(job, kept, best_fit)
            if placement is None:
                short = [shape for shape in job.shapes if shape.run_s <= starts_s]
                placement = _place(job, spots, best_fit, short)
            if placement is not None:
                placements.append(placement)
    return _decision(problem, placements)


def gavel(problem: Problem) -> Decision:
    """Gavel's max-min fairness over kinds of devices (Narayanan et al., OSDI 2020), for gangs that are not preempted.

    An LP gives each waiting job its share of time on each kind, such that the job that comes off worst is as fast as
    can be beside an equal share of all, and then all together are. Jobs start where their share is largest, the largest
    first.
    """
    spots = _spots(problem)
    line = [(job, shape) for job in problem.jobs for shape in job.shapes]
    shares = _fair_shares(problem.jobs, Counter(spot.kind for spot in spots for _ in spot.free))
    placed: dict[str, Placement] = {}
    for number in sorted(np.flatnonzero(shares > LEAST_SHARE), key=lambda number: -round(shares[number], 6)):
        job, shape = line[number]
        if job.id not in placed:
            placement = _place(job, spots, best_fit, [shape])
            if placement is not None:
                placed[job.id] = placement
    return _decision(problem, list(placed.values()))


def _fair_shares(jobs: Sequence[Job], free: Counter[str]) -> np.ndarray:
    """Of the time of each shape of each job, in the order of jobs and shapes. `free` devices of each kind are shared.

    The last variable is what the worst-off job reaches; a job's speed in a shape is the inverse of its run time.
    """
    line = [(number, shape) for number, job in enumerate(jobs) for shape in job.shapes]
    shares = np.zeros(len(line))
    usable = [column for column, (_, shape) in enumerate(line) if shape.size <= free[shape.kind]]
    if not usable:
        return shares
    rows = sorted({line[column][0] for column in usable})
    kinds = sorted({line[column][1].kind for column in usable})
    equal = np.zeros(len(jobs))
    for column in usable:
        number, shape = line[column]
        equal[number] += free[shape.kind] / free.total() / shape.run_s
    width = len(usable) + 1
    limits = np.zeros((2 * len(rows) + len(kinds), width))
    bounds = np.concatenate([np.zeros(len(rows)), np.ones(len(rows)), [free[kind] for kind in kinds]])
    speeds = np.zeros(width)
    for variable, column in enumerate(usable):
        number, shape = line[column]
        row, speed = rows.index(number), 1 / shape.run_s / equal[number]
        speeds[variable] = speed
        limits[row, variable] = -speed
        limits[len(rows) + row, variable] = 1.0
        limits[2 * len(rows) + kinds.index(shape.kind), variable] = shape.size
    limits[: len(rows), -1] = 1.0
    worst = linprog(-np.eye(width)[-1], A_ub=limits, b_ub=bounds)
    held = [(0.0, 1.0)] * (width - 1) + [(worst.x[-1] * (1 - 1e-6), None)]
    shares[usable] = linprog(-speeds, A_ub=limits, b_ub=bounds, bounds=held).x[:-1]
    return shares


def pwr_fgd(share: float) -> Planner:
    """Least power added mixed with least fragmentation, `share` of the former: PWR and FGD as published, on whole
    devices. Whatever fits starts, in order of arrival.

    Fragmentation of a node is the sum over the demands seen so far of their frequency times the free devices that are
    too few for them; power counts what a node adds when it has to come on and its devices when busy.
    """
    seen: dict[tuple[str, int], int] = {}
    known: set[str] = set()

    def fragments(kind: str, free: int) -> float:
        total = sum(count for (name, _), count in seen.items() if name == kind)
        lost = sum(count for (name, devices), count in seen.items() if name == kind and devices > free)
        return free * lost / total if total else 0.0

    def rank(spot: Spot, shape: Shape) -> tuple[float, ...]:
        power = spot.node.power
        added_w = shape.devices * shape.active_w + (0.0 if spot.on else power.base_w - power.off_w)
        free = len(spot.free)
        loss = fragments(spot.kind, free - shape.devices) - fragments(spot.kind, free)
        return (share * added_w / 2500.0 + (1 - share) * loss / 8.0,)

    def plan(problem: Problem) -> Decision:
        for job in problem.jobs:
            if job.id not in known:
                known.add(job.id)
                for shape in job.shapes:
                    demand = (shape.kind, shape.devices)
                    seen[demand] = seen.get(demand, 0) + 1
        spots = _spots(problem)
        placed = [_place_anywhere(job, spots, rank) for job in problem.jobs]
        return _decision(problem, [placement for placement in placed if placement is not None])

    return plan


def _spots(problem: Problem) -> list[Spot]:
    return [
        Spot(node=node, free=[device.id for device in node.devices if device.free == WHOLE_DEVICE], on=node.on)
        for node in problem.nodes
        if node.open
    ]


def _place(job: Job, spots: Sequence[Spot], rank: Rank, shapes: Sequence[Shape] | None = None) -> Placement | None:
    """Starts the job in its first shape that fits on nodes that are on, else in the first that fits at all."""
    for only_on in (True, False):
        for shape in job.shapes if shapes is None else shapes:
            chosen = _choose(shape, [spot for spot in spots if spot.on or not only_on], rank)
            if chosen is not None:
                return _take(job, shape, chosen)
    return None


def _place_anywhere(job: Job, spots: Sequence[Spot], rank: Rank) -> Placement | None:
    """Starts the job in the shape and on the nodes of the smallest rank."""
    found: list[tuple[tuple[float, ...], int, Shape, list[Spot]]] = []
    for number, shape in enumerate(job.shapes):
        chosen = _choose(shape, spots, rank)
        if chosen is not None:
            worst = max(rank(spot, shape) for spot in chosen)
            found.append((worst, number, shape, chosen))
    if not found:
        return None
    _, _, shape, chosen = min(found, key=lambda entry: entry[:2])
    return _take(job, shape, chosen)


def _choose(shape: Shape, spots: Sequence[Spot], rank: Rank) -> list[Spot] | None:
    fitting = [spot for spot in spots if spot.kind == shape.kind and len(spot.free) >= shape.devices]
    if len(fitting) < shape.members:
        return None
    return sorted(fitting, key=lambda spot: (rank(spot, shape), spot.node.id))[: shape.members]


def _take(job: Job, shape: Shape, spots: Sequence[Spot]) -> Placement:
    members: list[MemberPlacement] = []
    for spot in spots:
        members.append(MemberPlacement(node=spot.node.id, devices=tuple(spot.free[: shape.devices])))
        del spot.free[: shape.devices]
        spot.on = True
    return Placement(job=job.id, shape=job.shapes.index(shape), members=tuple(members))


def _reservation(
    problem: Problem, job: Job, spots: Sequence[Spot], placements: Sequence[Placement]
) -> tuple[float, set[str]]:
    """When the job is expected to start, in s from now, and the nodes it would start on."""
    free = {spot.node.id: len(spot.free) for spot in spots}
    kinds = {spot.node.id: spot.kind for spot in spots}
    jobs = {one.id: one for one in problem.jobs}
    ends = [
        (one.job.shapes[one.shape].run_s, hold.node, len(hold.devices))
        for one in problem.running
        for hold in one.members
    ]
    for placement in placements:
        run_s = jobs[placement.job].shapes[placement.shape].run_s
        ends += [(run_s, member.node, len(member.devices)) for member in placement.members]
    for end_s, node, devices in sorted(ends):
        if node not in free:
            continue
        free[node] += devices
        for shape in job.shapes:
            fitting = [name for name, count in free.items() if kinds[name] == shape.kind and count >= shape.devices]
            if len(fitting) >= shape.members:
                return end_s, set(sorted(fitting, key=lambda name: free[name])[: shape.members])
    return 0.0, set()


def _decision(problem: Problem, placements: Sequence[Placement]) -> Decision:
    """Every node that may be switched off should be: what says when is the idle timer."""
    return Decision(placements=tuple(placements), off=tuple(node.id for node in problem.nodes if node.can_switch))
