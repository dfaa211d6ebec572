"""Makes jobs that run larger or smaller: they stop, and go on from their checkpoint on another number of nodes.

While a job waits that finds no room, a job of its priority or a lower one is made smaller if the room that it leaves
lets the other start. While none waits, jobs are made larger where nodes are free. Both are priced as
`scheduler.objective` prices placements, `Problem.fill` included, and must save `LEAST_GAIN` times what they cost: a
restart and the work since the last checkpoint (`Running.move_j`), of the devices that the job has before or after,
whichever are more. What waits is taken to wait until jobs that run are expected to leave it room. A job keeps its
devices on the nodes that it does not leave. Nodes that are off or boot, and devices that are shared, are left out.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.consolidate import LEAST_GAIN, free_devices, rate_w
from scheduler.objective import stakes
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import Job, Node, Problem, Running, Shape

LOOKED_AT = 5
"""Jobs that wait and may have room made for them: so many from the head of the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """`moves` are jobs that run, in a new shape (`Running.every_shape`); `starts` are jobs that waited and start in
    the room that these leave.
    """

    moves: tuple[Placement, ...]
    starts: tuple[Placement, ...]


def resize(problem: Problem, placements: Sequence[Placement]) -> Resized:
    """What had better be resized, up to `problem.resizes` jobs, once the placements of a plan have been made.

    Equal arguments give equal answers.
    """
    placed, possible = {placement.job for placement in placements}, stakes(problem)
    waiting = [job for job in problem.jobs if job.id in possible and job.id not in placed]
    ground = _Ground(problem, placements)
    if not waiting:
        return Resized(moves=tuple(_grow(ground, problem.resizes)), starts=())
    first = problem.reservation.job if problem.reservation else ""
    line = sorted(waiting, key=lambda job: (-job.priority, job.id != first, job.order, job.id))
    return _make_room(ground, line[:LOOKED_AT], first, problem.resizes)


def _grow(ground: "_Ground", most: int) -> Iterator[Placement]:
    """The growths that save most, one after the other."""
    heap = [(-change.saves_j, number) for number, one in enumerate(ground.resizable) if (change := ground.growth(one))]
    heapq.heapify(heap)
    # Lazily greedy: a growth takes room from the others, so these only become worse.
    while heap and most:
        _, number = heapq.heappop(heap)
        change = ground.growth(ground.resizable[number])
        if change is None:
            continue
        if heap and change.saves_j < -heap[0][0]:
            heapq.heappush(heap, (-change.saves_j, number))
            continue
        most -= 1
        yield ground.carry_out(change)


def _make_room(ground: "_Ground", line: Sequence[Job], first: str, most: int) -> Resized:
    """For each job in line the change that saves most, if one lets it start; or room that a change before left over."""
    moves: dict[str, Placement] = {}
    starts: list[Placement] = []
    for job in line:
        wishes = ground.wishes(job, is_first=job.id == first)
        spare = [wish for wish in wishes if wish.lacks <= 0]
        if spare and moves:
            starts.append(ground.start(max(spare, key=lambda wish: wish.worth_j)))
            continue
        found = [
            (change.saves_j, -number, wish, change)
            for wish in wishes
            if wish.lacks > 0
            for number, one in enumerate(ground.resizable)
            if one.job.id not in moves and one.job.priority <= job.priority
            if (change := ground.room(one, wish)) is not None
        ]
        if found and len(moves) < most:
            _, _, wish, change = max(found, key=lambda each: each[:2])
            moves[change.job.job.id] = ground.carry_out(change)
            starts.append(ground.start(wish))
    return Resized(moves=tuple(moves.values()), starts=tuple(starts))


@dataclass(frozen=True, slots=True)
class _Change:
    """A job, the shape that it gets, the places (indices of nodes) where it then is, and what that saves beyond what it
    must, in J: more than 0.
    """

    job: Running
    shape: int
    places: tuple[int, ...]
    saves_j: float


@dataclass(frozen=True, slots=True)
class _Wish:
    """A job that waits, a shape of its, on how many nodes that lacks room, and what its start now is worth, in J.
    `is_first`: it is the job of the reservation.
    """

    job: Job
    number: int
    lacks: int
    worth_j: float
    is_first: bool

    @property
    def shape(self) -> Shape:
        return self.job.shapes[self.number]


class _Ground:
    """The nodes with whoever is on them, while jobs are resized. `resizable` are the jobs that may be."""

    def __init__(self, problem: Problem, placements: Sequence[Placement]) -> None:
        self._problem, self._nodes = problem, problem.nodes
        self._all = range(len(problem.nodes))
        self._index = {node.id: number for number, node in enumerate(problem.nodes)}
        kinds = {device.kind for node in problem.nodes for device in node.devices}
        self._devices = [{kind: free_devices(node, kind) for kind in kinds} for node in problem.nodes]
        self._millicores = [node.free_millicores for node in problem.nodes]
        self._memory_bytes = [node.free_memory_bytes for node in problem.nodes]
        self._rate_w = [rate_w(node, problem.fill) for node in problem.nodes]
        self._shares_w = problem.shares_w()
        self._kept = set(problem.reservation.nodes if problem.reservation else ())
        self._ends_s: list[dict[str, float]] = [{} for _ in problem.nodes]
        self._holds = {
            one.job.id: {self._index[hold.node]: hold.devices for hold in one.members if hold.node in self._index}
            for one in problem.running
        }
        self.resizable = [one for one in problem.running if one.resizes and self._stands_open(one)]
        self._there: list[list[tuple[float, Shape]]] = [[] for _ in problem.nodes]
        for one in sorted(problem.running, key=lambda one: one.job.shapes[one.shape].run_s):
            shape = one.job.shapes[one.shape]
            for place in self._holds[one.job.id]:
                self._ends_s[place][one.job.id] = shape.run_s
                self._there[place].append((shape.run_s, shape))
        for place, node in enumerate(problem.nodes):
            if node.busy_s > max(self._ends_s[place].values(), default=0.0):
                self._ends_s[place][""] = node.busy_s  # held by what `running` does not tell of
        jobs = {job.id: job for job in problem.jobs}
        for placement in placements:
            shape = jobs[placement.job].shapes[placement.shape]
            for member in placement.members:
                self._take(self._index[member.node], placement.job, shape, member.devices)

    def growth(self, one: Running) -> _Change | None:
        """How the job had best be made larger, if that is worth it and it was not resized yet."""
        own = tuple(self._holds[one.job.id])
        found: _Change | None = None
        for number, shape in enumerate(one.every_shape.shapes):
            if shape.members <= len(own):
                continue
            free = [place for place in self._all if place not in own and self._fits(place, shape)]
            # Of equal joules the tightest fit, so that wide gangs find room.
            free.sort(key=lambda place: (self._adds_j(place, one, shape.run_s), self._left(place, shape), place))
            places = own + tuple(free[: shape.members - len(own)])
            if len(places) == shape.members:
                found = _better(found, _Change(one, number, places, self._saves_j(one, number, places)))
        return found

    def wishes(self, job: Job, *, is_first: bool) -> list[_Wish]:
        """The shapes in which a job that waits might start if there were room; without power caps."""
        takes_j = [self._problem.pue * shape.work_j + job.late_j(number) for number, shape in enumerate(job.shapes)]
        size = max(1, min(shape.size for shape in job.shapes))
        starts_s = (self._free_s(shape, is_first) for shape in job.shapes if not shape.shared)
        waits_j = job.wait_w * size * min(self._problem.horizon_s, min(starts_s, default=0.0))
        found: list[_Wish] = []
        for number, shape in enumerate(job.shapes):
            if not shape.shared and not shape.cap_w:
                lacks = shape.members - sum(self._fits(place, shape, is_first) for place in self._all)
                found.append(_Wish(job, number, lacks, waits_j - (takes_j[number] - min(takes_j)), is_first))
        return found

    def room(self, one: Running, wish: _Wish) -> _Change | None:
        """How the job that runs had best be made smaller for another to start, if that is worth it."""
        own, left = tuple(self._holds[one.job.id]), one.job.shapes[one.shape]
        helpful = {
            place
            for place in own
            if not self._fits(place, wish.shape, wish.is_first)
            and self._fits(place, wish.shape, wish.is_first, beside=[left])
        }
        found: _Change | None = None
        for number, shape in enumerate(one.every_shape.shapes):
            leaves = len(own) - shape.members
            if wish.lacks > min(leaves, len(helpful)):
                continue
            dearest = sorted(own, key=lambda place: (-self._adds_j(place, one, shape.run_s), -place))
            given = [place for place in dearest if place in helpful][: wish.lacks]
            given += [place for place in dearest if place not in given][: leaves - wish.lacks]
            places = tuple(place for place in own if place not in given)
            found = _better(found, _Change(one, number, places, wish.worth_j + self._saves_j(one, number, places)))
        return found

    def carry_out(self, change: _Change) -> Placement:
        """Resizes the job."""
        one, held = change.job, self._holds[change.job.job.id]
        before, shape = one.job.shapes[one.shape], one.every_shape.shapes[change.shape]
        for place, devices in held.items():
            self._take(place, one.job.id, before, devices, sign=-1)
        now: dict[int, tuple[str, ...]] = {}
        for place in change.places:
            now[place] = held.get(place) or tuple(self._devices[place].get(shape.kind, ())[: shape.devices])
            self._take(place, one.job.id, shape, now[place])
        self._holds[one.job.id] = now
        return self._placement(one.job.id, change.shape, now)

    def start(self, wish: _Wish) -> Placement:
        """Starts a job for which room was made."""
        shape = wish.shape
        able = [place for place in self._all if self._fits(place, shape, wish.is_first)]
        able.sort(key=lambda place: (self._adds_j(place, None, shape.run_s), self._left(place, shape), place))
        now: dict[int, tuple[str, ...]] = {}
        for place in able[: shape.members]:
            now[place] = tuple(self._devices[place].get(shape.kind, ())[: shape.devices])
            self._take(place, wish.job.id, shape, now[place])
        return self._placement(wish.job.id, wish.number, now)

    def _placement(self, job: str, shape: int, places: dict[int, tuple[str, ...]]) -> Placement:
        members = (MemberPlacement(node=self._nodes[place].id, devices=held) for place, held in places.items())
        return Placement(job=job, shape=shape, members=tuple(members))

    def _saves_j(self, one: Running, number: int, places: Sequence[int]) -> float:
        """What the job saves by going on in another shape at these places, less `LEAST_GAIN` times what that costs."""
        before, after = one.job.shapes[one.shape].members, one.every_shape.shapes[number].members
        costs_j = one.move_j * max(before, after) / before
        now_j = self._takes_j(one, one.shape, tuple(self._holds[one.job.id]))
        return now_j - self._takes_j(one, number, places) - LEAST_GAIN * costs_j

    def _takes_j(self, one: Running, number: int, places: Sequence[int]) -> float:
        """What the rest of the job takes: work, nodes that are on for it, and how late it ends."""
        job = one.every_shape
        shape = job.shapes[number]
        work_j = shape.size * (shape.active_w + self._shares_w.get(shape.kind, 0.0)) * shape.run_s
        on_j = sum(self._adds_j(place, one, shape.run_s) for place in places)
        return self._problem.pue * (work_j + on_j) + job.late_j(number)

    def _adds_j(self, place: int, one: Running | None, run_s: float) -> float:
        """What a job that ends then makes the node draw for being on longer than for the others."""
        others = (end_s for job, end_s in self._ends_s[place].items() if one is None or job != one.job.id)
        until_s, horizon_s = max(others, default=0.0), self._problem.horizon_s
        return self._rate_w[place] * (min(horizon_s, max(until_s, run_s)) - min(horizon_s, until_s))

    def _free_s(self, shape: Shape, is_first: bool) -> float:
        """When so many nodes are expected to have room for the shape."""
        times = sorted(self._free_at_s(place, shape, is_first) for place in self._all)
        return times[shape.members - 1] if len(times) >= shape.members else math.inf

    def _free_at_s(self, place: int, shape: Shape, is_first: bool) -> float:
        """When the node is expected to have room for a member: as soon as enough of its jobs have ended."""
        gone: list[Shape] = []
        for ends_s, left in [(0.0, None), *self._there[place]]:
            gone += [left] if left else []
            if self._fits(place, shape, is_first, beside=gone):
                return ends_s
        return math.inf

    def _fits(self, place: int, shape: Shape, is_first: bool = False, *, beside: Sequence[Shape] = ()) -> bool:
        """Whether the node takes a member of the shape, once a member each of the shapes `beside` has left it."""
        node = self._nodes[place]
        if not _takes_in(node) or (node.id in self._kept and not is_first):
            return False
        devices = len(self._devices[place].get(shape.kind, ()))
        devices += sum(other.devices for other in beside if other.kind == shape.kind and not other.shared)
        return (
            devices >= shape.devices
            and self._millicores[place] + sum(other.millicores for other in beside) >= shape.millicores
            and self._memory_bytes[place] + sum(other.memory_bytes for other in beside) >= shape.memory_bytes
            and not (shape.in_container and node.container_fault)
        )

    def _left(self, place: int, shape: Shape) -> int:
        """Devices that are free on the node, or thousandths of a core where none is asked for."""
        return len(self._devices[place][shape.kind]) if shape.devices else self._millicores[place]

    def _take(self, place: int, job: str, shape: Shape, devices: Sequence[str], sign: int = 1) -> None:
        """A member of the shape comes to the node, or leaves it where `sign` is -1."""
        self._millicores[place] -= sign * shape.millicores
        self._memory_bytes[place] -= sign * shape.memory_bytes
        free = self._devices[place]
        if sign < 0:
            self._ends_s[place].pop(job, None)
            if shape.devices:
                free[shape.kind] = [*free[shape.kind], *devices]
            return
        self._ends_s[place][job] = shape.run_s
        if shape.devices:
            free[shape.kind] = [device for device in free[shape.kind] if device not in devices]

    def _stands_open(self, one: Running) -> bool:
        """Whether all of the job's nodes are there and take new work, so that it may go on there."""
        places = self._holds[one.job.id]
        return len(places) == len(one.members) and all(_takes_in(self._nodes[place]) for place in places)


def _better(found: _Change | None, other: _Change) -> _Change | None:
    """The one that saves more, if any saves something."""
    return other if other.saves_j > (found.saves_j if found else 0.0) else found


def _takes_in(node: Node) -> bool:
    return node.on and node.open and not node.booting
