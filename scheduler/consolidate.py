"""Moves jobs that run onto fewer or thriftier nodes, so that others go off: where nodes can be switched.

What a move saves is priced as `scheduler.objective` prices placements, `Problem.fill` included: the draw of the job's
devices for as long as it goes on, and how long the nodes that it leaves and joins stay on. It costs a restart and the
work since the last checkpoint (`Running.move_j`). Looked at are jobs alone, and all jobs of a node together, because
only the last that leaves a node lets it go off. Only jobs of one member move, to nodes that are on, and never to where
they would run longer. What CPU sockets draw is left out.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Node, Problem, Running, Shape

LEAST_GAIN = 2.0
"""What moves must save, in what they cost: how long jobs go on is a guess."""

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]
Group = tuple[str, ...]


def consolidate(problem: Problem, placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """The moves that save most, up to `problem.moves`, once the placements of a plan have been made.

    Each shape of a running job must say how much longer the job would run in it. Equal arguments give equal moves.
    """
    cluster = _Cluster(problem, placements)
    moves: dict[str, Placement] = {}
    heap = [(-saves_j, group) for group in cluster.groups() if (saves_j := cluster.saves_j(group)) > 0]
    heapq.heapify(heap)
    # Lazily greedy: moves that were made seldom make others better, so what was the best before is looked at again
    # only when it is the best of what is left.
    while heap:
        _, group = heapq.heappop(heap)
        if len(moves) + len(group) > problem.moves or any(job in moves for job in group):
            continue
        saves_j = cluster.saves_j(group)
        if saves_j <= 0:
            continue
        if heap and saves_j < -heap[0][0]:
            heapq.heappush(heap, (-saves_j, group))
            continue
        moves |= {job: cluster.move(job) for job in group}
    return tuple(moves[one.job.id] for one in problem.running if one.job.id in moves)


@dataclass(slots=True)
class _Room:
    """What is left of every node, by its index; `until_s` is when the last of its jobs is expected to end."""

    free: dict[str, Counts]
    millicores: Counts
    memory_bytes: Counts
    until_s: Vector

    def copy(self) -> "_Room":
        free = {kind: count.copy() for kind, count in self.free.items()}
        return _Room(free, self.millicores.copy(), self.memory_bytes.copy(), self.until_s.copy())

    def take(self, place: int, shape: Shape, sign: int = 1) -> None:
        if shape.devices:
            self.free[shape.kind][place] -= sign * shape.devices
        self.millicores[place] -= sign * shape.millicores
        self.memory_bytes[place] -= sign * shape.memory_bytes
        if sign > 0:
            self.until_s[place] = max(self.until_s[place], shape.run_s)


@dataclass(frozen=True, slots=True)
class _Way:
    """A shape of a job, the index of a node, and what the rest of the job takes there, in J."""

    shape: int
    place: int
    takes_j: float


class _Cluster:
    """The nodes with whoever is on them, while moves are made."""

    def __init__(self, problem: Problem, placements: Sequence[Placement]) -> None:
        nodes = problem.nodes
        self._nodes = nodes
        self._horizon_s = problem.horizon_s
        index = {node.id: number for number, node in enumerate(nodes)}
        kinds = sorted({device.kind for node in nodes for device in node.devices})
        self._devices = [{kind: free_devices(node, kind) for kind in kinds} for node in nodes]
        self._shares_w = problem.shares_w()
        self._rate_w = np.array([rate_w(node, problem.fill) for node in nodes])
        kept = problem.reservation.nodes if problem.reservation else ()
        self._takes_in = np.array(
            [node.on and node.open and not node.booting and node.id not in kept for node in nodes], dtype=bool
        )
        self._runs_containers = np.array([not node.container_fault for node in nodes], dtype=bool)
        self._ends_s: list[dict[str, float]] = [{} for _ in nodes]
        self._jobs: dict[str, Running] = {}
        self._home: dict[str, int] = {}
        for one in problem.running:
            places = [index[hold.node] for hold in one.members if hold.node in index]
            for place in places:
                self._ends_s[place][one.job.id] = one.job.shapes[one.shape].run_s
            if one.may_move and len(places) == len(one.members) == 1 and not one.job.shapes[one.shape].shared:
                self._jobs[one.job.id] = one
                self._home[one.job.id] = places[0]
        for place, node in enumerate(nodes):
            if node.busy_s > max(self._ends_s[place].values(), default=0.0):
                self._ends_s[place][""] = node.busy_s  # held by what `running` does not tell of
        self._room = _Room(
            free={kind: np.array([len(devices[kind]) for devices in self._devices]) for kind in kinds},
            millicores=np.array([node.free_millicores for node in nodes]),
            memory_bytes=np.array([node.free_memory_bytes for node in nodes]),
            until_s=np.array([max(ends.values(), default=0.0) for ends in self._ends_s]),
        )
        shapes = {job.id: job.shapes for job in problem.jobs}
        for placement in placements:
            for member in placement.members:
                shape = shapes[placement.job][placement.shape]
                self._take(index[member.node], placement.job, shape, member.devices)

    def groups(self) -> Iterator[Group]:
        """What may move together: each job alone, and all jobs of each node."""
        yield from ((job,) for job in self._jobs)
        for ends_s in self._ends_s:
            if len(ends_s) > 1 and ends_s.keys() <= self._jobs.keys():
                # The widest first, because they find room last.
                yield tuple(sorted(ends_s, key=lambda job: (-self._now(job).devices, job)))

    def saves_j(self, group: Group) -> float:
        """What moving jobs of one node saves beyond `LEAST_GAIN` times what it costs, in J; less than 0 if not all of
        them find a place.
        """
        home = self._home[group[0]]
        if any(self._home[job] != home for job in group):
            return -1.0
        staying_s = max((end_s for job, end_s in self._ends_s[home].items() if job not in group), default=0.0)
        saves_j = self._rate_w[home] * (self._within(self._room.until_s[home]) - self._within(staying_s))
        room = self._room.copy() if len(group) > 1 else self._room
        for job in group:
            way = self._cheapest(job, room)
            if way is None:
                return -1.0
            one = self._jobs[job]
            saves_j += self._work_j(self._now(job)) - way.takes_j - LEAST_GAIN * one.move_j
            if len(group) > 1:
                room.take(way.place, one.job.shapes[way.shape])
        return float(saves_j)

    def move(self, job: str) -> Placement:
        """Moves the job to where it takes least."""
        way = self._cheapest(job, self._room)
        assert way is not None, "a place was found for it just now"
        home, one = self._home[job], self._jobs[job]
        shape = one.job.shapes[way.shape]
        left = self._now(job)
        self._room.take(home, left, -1)
        if left.devices:
            self._devices[home][left.kind] += one.members[0].devices
        del self._ends_s[home][job]
        self._room.until_s[home] = max(self._ends_s[home].values(), default=0.0)
        devices = tuple(self._devices[way.place][shape.kind][: shape.devices]) if shape.devices else ()
        self._take(way.place, job, shape, devices)
        self._home[job] = way.place
        member = MemberPlacement(node=self._nodes[way.place].id, devices=devices)
        return Placement(job=job, shape=way.shape, members=(member,))

    def _take(self, place: int, job: str, shape: Shape, devices: tuple[str, ...]) -> None:
        self._room.take(place, shape)
        self._ends_s[place][job] = shape.run_s
        if shape.devices:
            free = self._devices[place][shape.kind]
            self._devices[place][shape.kind] = [device for device in free if device not in devices]

    def _cheapest(self, job: str, room: _Room) -> _Way | None:
        """Where what is left of the job would take least, other than where it is; None if there is no room."""
        one, home, best = self._jobs[job], self._home[job], None
        longest_s = self._now(job).run_s
        for number, shape in enumerate(one.job.shapes):
            # What moves goes on without a power cap.
            if shape.members != 1 or shape.shared or shape.cap_w or shape.run_s > longest_s:
                continue
            if shape.devices and shape.kind not in room.free:
                continue
            fits = self._takes_in & (room.millicores >= shape.millicores) & (room.memory_bytes >= shape.memory_bytes)
            if shape.devices:
                fits &= room.free[shape.kind] >= shape.devices
            if shape.in_container:
                fits &= self._runs_containers
            fits[home] = False
            places = np.flatnonzero(fits)
            if not len(places):
                continue
            until_s = room.until_s[places]
            longer_s = self._within(np.maximum(until_s, shape.run_s)) - self._within(until_s)
            adds_j = self._rate_w[places] * longer_s
            # Of equal joules the tightest fit, so that wide gangs find room.
            left = room.free[shape.kind][places] if shape.devices else room.millicores[places]
            first = np.lexsort((places, left, adds_j))[0]
            takes_j = float(adds_j[first]) + self._work_j(shape)
            if best is None or takes_j < best.takes_j:
                best = _Way(number, int(places[first]), takes_j)
        return best

    def _now(self, job: str) -> Shape:
        one = self._jobs[job]
        return one.job.shapes[one.shape]

    def _work_j(self, shape: Shape) -> float:
        """What the rest of a job takes in the shape, its devices' share of their nodes included."""
        return shape.size * (shape.active_w + self._shares_w.get(shape.kind, 0.0)) * shape.run_s

    def _within(self, at_s: Vector | float) -> Vector:
        return np.minimum(self._horizon_s, at_s)


def free_devices(node: Node, kind: str) -> list[str]:
    """The node's devices of the kind that nobody has a part of, by id."""
    return [device.id for device in node.devices if device.kind == kind and device.free == WHOLE_DEVICE]


def rate_w(node: Node, fill: float) -> float:
    """What being on costs the node, in W, but for the share that its devices answer for."""
    return (1 - fill) * (node.power.base_w - node.power.off_w) if node.can_switch else 0.0
