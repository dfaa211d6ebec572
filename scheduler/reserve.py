"""Nodes kept for a job that has waited too long, so that smaller ones cannot overtake it for ever."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scheduler.budgets import Limit, Never, Offer, draw_of, limits, member_mw, memberships, short
from scheduler.feasibility import (
    Room,
    can_host,
    fits,
    free_devices,
    free_room,
    possible_shapes,
    takes_work,
    total_room,
)
from scheduler.plan import Reason
from scheduler.problem import Job, Node, Problem, Reservation, Running, Shape
from scheduler.validate import packs

OVERTAKEN_S = 3600.0
"""How long the first in line may be overtaken, unless somebody says otherwise."""

UNKNOWN_S = 1.0
"""When there will be watts enough, if that takes nodes that are switched off: nothing else starts until then."""

NAMED = 8
"""Nodes that a reason names."""


def reserve(problem: Problem, job: Job) -> Reservation | None:
    """What keeps others from overtaking a job of the problem: it is the first of its priority, and nodes are kept for
    it unless it can start now.

    Kept are those that are expected to have room for a member of it soonest, in the shape for which the last of them
    has room first. When that is follows from `problem.running`, and for what is not told of there from `Node.busy_s`.
    Where a power budget leaves too little for it, all nodes of that budget are kept until jobs that run there will have
    left enough, so that smaller ones do not take every watt that becomes free.
    Without any kept where jobs share devices or need none (`scheduler.validate.packs`). None if the nodes that take
    work could not carry the job even if they were empty.
    """
    nodes = [node for node in problem.nodes if takes_work(node)]
    if packs(problem):
        return Reservation(job=job.id)
    releases = _releases(problem.running)
    watts = _Watts(problem, nodes)
    found: list[tuple[float, tuple[str, ...]]] = []
    for index in possible_shapes(job, total_room(nodes)):
        shape = job.shapes[index]
        if watts.never(shape):
            continue
        rooms = sorted((_free_s(node, shape, releases.get(node.id, [])), node.id) for node in nodes)[: shape.members]
        if rooms and math.isfinite(rooms[-1][0]):
            free_s, kept = watts.wait(shape, rooms[-1][0], {name for _, name in rooms})
            found.append((free_s, tuple(sorted(kept))))
    if not found:
        return None
    free_s, names = min(found)
    return Reservation(job=job.id, nodes=names if free_s > 0 else (), free_s=free_s)


class _Watts:
    """When the power budgets of a problem have room for a job."""

    def __init__(self, problem: Problem, nodes: Sequence[Node]) -> None:
        self._limits = limits(problem)
        self._never = Never(problem.nodes, problem.budgets)
        self._nodes = nodes
        self._rooms = {node.id: total_room([node])[0] for node in nodes} if self._limits else {}
        self._running = sorted(problem.running, key=lambda one: one.job.shapes[one.shape].run_s)

    def never(self, shape: Shape) -> bool:
        """Whether a budget could never let it start."""
        return bool(self._never.why((shape,)))

    def wait(self, shape: Shape, free_s: float, kept: set[str]) -> tuple[float, set[str]]:
        """The same, or when the budgets that lack watts have them and the nodes of these too."""
        of = memberships(self._limits)
        offers = [
            Offer(budgets=of.get(node.id, frozenset()), adds=draw_of(node).adds(member_mw(shape)))
            for node in self._nodes
            if self._limits and self._rooms[node.id].holds(shape)
        ]
        names = {node.id for node in self._nodes}
        for limit in self._limits:
            if (lacks := short(offers, shape.members, [limit])) is not None:
                free_s = max(free_s, self._enough_s(limit, lacks[1] - limit.free))
                kept |= limit.nodes & names
        return free_s, kept

    def _enough_s(self, limit: Limit, lack: int) -> float:
        """When jobs that run will have left so many mW of a budget, in s."""
        for one in self._running:
            shape = one.job.shapes[one.shape]
            lack -= sum(member_mw(shape) for member in one.members if member.node in limit.nodes and not shape.shared)
            if lack <= 0:
                return shape.run_s
        return UNKNOWN_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Release:
    """What a node gets back in `after_s` seconds."""

    after_s: float
    kind: str
    devices: int
    millicores: int
    memory_bytes: int


def _releases(running: Sequence[Running]) -> dict[str, list[_Release]]:
    """By node, the soonest first."""
    found: dict[str, list[_Release]] = {}
    for one in sorted(running, key=lambda one: one.job.shapes[one.shape].run_s):
        shape = one.job.shapes[one.shape]
        for member in one.members:
            release = _Release(
                after_s=shape.run_s,
                kind=shape.kind,
                devices=0 if shape.shared else shape.devices,
                millicores=shape.millicores,
                memory_bytes=shape.memory_bytes,
            )
            found.setdefault(member.node, []).append(release)
    return found


def _free_s(node: Node, shape: Shape, releases: Sequence[_Release]) -> float:
    """When the node has room for a member, in s from now; infinity if never."""
    if not can_host(node, shape):
        return math.inf
    for after_s, devices, millicores, memory_bytes in _rooms(node, shape.kind, releases):
        if devices >= shape.devices and millicores >= shape.millicores and memory_bytes >= shape.memory_bytes:
            return after_s
    return math.inf


def _rooms(node: Node, kind: str, releases: Sequence[_Release]) -> Iterator[tuple[float, int, int, int]]:
    """What is free over time: after how many s, devices of the kind, thousandths of a core, bytes. Once the node is
    expected to be empty all of it is.
    """
    devices, millicores, memory_bytes = free_devices(node)[kind], node.free_millicores, node.free_memory_bytes
    yield 0.0, devices, millicores, memory_bytes
    for release in releases:
        devices += release.devices if release.kind == kind else 0
        millicores += release.millicores
        memory_bytes += release.memory_bytes
        yield release.after_s, devices, millicores, memory_bytes
    if node.busy_s > 0:
        all_devices = Counter(device.kind for device in node.devices)[kind]
        yield node.busy_s, all_devices, node.cpu_millicores, node.memory_bytes


class Kept:
    """Why jobs wait that the reservation of a problem is about."""

    def __init__(self, problem: Problem) -> None:
        self._reservation = problem.reservation
        names = problem.reservation.nodes if problem.reservation else ()
        self._rooms = free_room(node for node in problem.nodes if node.id not in names)

    def why(self, job: Job, free: Sequence[Room]) -> tuple[Reason, ...]:
        """Reasons for a job that waits; none if the reservation is not why.

        Args:
            free: `free_room` of all nodes.
        """
        if self._reservation is None or not self._reservation.nodes:
            return ()
        after = f"about {max(1, round(self._reservation.free_s / 60))} min"
        if job.id == self._reservation.job:
            names = self._reservation.nodes
            listed = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
            message = f"it has been overtaken for long enough: kept for it, with room in {after}, are {listed}"
            return (Reason(code="nodes_kept", message=message),)
        if any(fits(shape, free) and not fits(shape, self._rooms) for shape in job.shapes):
            message = (
                f"the free devices are kept for job {self._reservation.job}, which others have overtaken for long "
                f"enough; only jobs that are expected to end within {after} start there"
            )
            return (Reason(code="kept_for_another", message=message),)
        return ()
