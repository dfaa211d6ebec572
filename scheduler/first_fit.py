"""Jobs in line order, each on the nodes it fits best: for clusters with power budgets or with devices of several kinds
in one node, which `scheduler.packing` cannot see whole. Needs no solver; loads fast.
"""

from collections.abc import Iterator, Sequence

from scheduler.budgets import Headroom, draw_of, limits, milliwatts
from scheduler.demand import WHOLE_DEVICE
from scheduler.feasibility import can_host, takes_work
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import Job, Node, Problem, Shape

Score = tuple[bool, int, int, int, str]
"""How little a member takes that others could use; the least is best: a node to switch on, thousandths of a device
that wake up, whole devices left beside it, thousandths of a core left, and the node's name."""


def first_fit(problem: Problem) -> tuple[Placement, ...]:
    """Which jobs start now and where: no job stands in for one before it in line."""
    rooms = [_Room(node) for node in problem.nodes if takes_work(node)]
    headroom = Headroom(limits(problem))
    hopeless: set[tuple[Shape, ...]] = set()
    placements: list[Placement] = []
    for job in sorted(problem.jobs, key=lambda job: (-job.priority, job.order, job.id)):
        if job.shapes in hopeless:
            continue
        placement = _place(job, rooms, headroom)
        if placement is None:
            hopeless.add(job.shapes)  # what is free only gets less
        else:
            placements.append(placement)
    return tuple(placements)


class _Room:
    """What is left of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.free = [device.free for device in node.devices]
        self.millicores = node.free_millicores
        self.memory_bytes = node.free_memory_bytes
        self.draw = draw_of(node)
        self.used = False
        self.active_mw: dict[int, int] = {}
        """What each device that woke up draws, by index."""

    def offer(self, shape: Shape) -> tuple[Score, tuple[int, ...]] | None:
        """Indices of the devices a member of the shape would get, and how good that is; None if it does not fit."""
        if self.millicores < shape.millicores or self.memory_bytes < shape.memory_bytes:
            return None
        able = list(self._able(shape))
        if len(able) < shape.devices or not can_host(self.node, shape):
            return None
        able.sort(key=lambda index: self.free[index])
        taken = tuple(able[: shape.devices])
        woken = sum(shape.share for index in taken if self.free[index] == WHOLE_DEVICE)
        whole = sum(left == WHOLE_DEVICE for left in self.free)
        return (not self.node.on, woken, whole, self.millicores - shape.millicores, self.node.id), taken

    def adds_mw(self, shape: Shape, taken: Sequence[int]) -> int:
        """What a member on these devices adds to the node's draw, in mW."""
        before = self.draw.adds(sum(self.active_mw.values())) if self.used else 0
        return self.draw.adds(sum(self._active_mw(shape, taken).values())) - before

    def take(self, shape: Shape, taken: Sequence[int]) -> MemberPlacement:
        self.active_mw = self._active_mw(shape, taken)
        self.used = True
        for index in taken:
            self.free[index] -= shape.share
        self.millicores -= shape.millicores
        self.memory_bytes -= shape.memory_bytes
        return MemberPlacement(node=self.node.id, devices=tuple(self.node.devices[index].id for index in taken))

    def _active_mw(self, shape: Shape, taken: Sequence[int]) -> dict[int, int]:
        active = dict(self.active_mw)
        for index in taken:
            if self.node.devices[index].free == WHOLE_DEVICE:  # others were in use before: they draw already
                active[index] = max(active.get(index, 0), milliwatts(shape.active_w))
        return active

    def _able(self, shape: Shape) -> Iterator[int]:
        """Indices of the devices that would do for the shape."""
        if not shape.devices:
            return
        for index, device in enumerate(self.node.devices):
            isolated = not shape.shared or device.isolation >= shape.isolation
            if device.kind == shape.kind and self.free[index] >= shape.share and isolated:
                yield index


def _place(job: Job, rooms: Sequence[_Room], headroom: Headroom) -> Placement | None:
    """Puts the job where it fits best, in the shape that does."""
    best: tuple[list[Score], int, list[tuple[_Room, tuple[int, ...]]]] | None = None
    for number, shape in enumerate(job.shapes):
        offers = [(offer[0], room, offer[1]) for room in rooms if (offer := room.offer(shape)) is not None]
        offers.sort(key=lambda offer: offer[0])
        draws = [(room.node.id, room.adds_mw(shape, taken)) for _, room, taken in offers]
        chosen = [offers[index] for index in headroom.pick(draws, shape.members) or ()]
        scores = [score for score, _, _ in chosen]
        if len(chosen) == shape.members and (best is None or scores < best[0]):
            best = (scores, number, [(room, taken) for _, room, taken in chosen])
    if best is None:
        return None
    _, number, members = best
    shape = job.shapes[number]
    for room, taken in members:
        headroom.take(room.node.id, room.adds_mw(shape, taken))
    return Placement(job=job.id, shape=number, members=tuple(room.take(shape, taken) for room, taken in members))
