"""Places that a plan has given and that are not free yet: a move takes two steps, and so does a start on a node that
boots.

First jobs are stopped, or nodes are switched on. What is to start in the room that jobs leave, themselves elsewhere and
others where they were, claims its place until its devices are free; what is to start on a node that boots, until it is
on. Claims are in the leader's memory only: if that is lost, the jobs are planned like any other that waits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduler.plan import Placement, Plan
from scheduler.problem import Job, Node, Problem, Shape

PATIENCE_S = 600.0
"""A claim whose place has not become free for so long is given up."""

MOST_AT_ONCE = 15
"""Moves of one plan, at most, and resizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A place that will be free. `epoch` is the job's latest attempt when it was given; `since_s` when that was.

    `boots`: it waits for nodes to boot, which has a limit of its own (`PowerPool.boot_limit_s`).
    """

    placement: Placement
    shape: Shape
    epoch: int
    since_s: float
    boots: bool = False

    @property
    def nodes(self) -> set[str]:
        return {member.node for member in self.placement.members}

    @property
    def job(self) -> str:
        return self.placement.job


class Allowance:
    """How many moves there may be: so many for each job that comes, all of them since this process leads."""

    def __init__(self, per_job: float) -> None:
        self._per_job = per_job
        self._newest: int | None = None
        self._came = 0
        self._made = 0

    def note(self, jobs: Sequence[Job]) -> None:
        """What waits at this moment. Jobs that waited already when this process began to lead do not count."""
        newest = max((job.order for job in jobs), default=-1)
        if self._newest is not None:
            self._came += sum(job.order > self._newest for job in jobs)
        self._newest = max(newest, -1 if self._newest is None else self._newest)

    def spend(self, moves: int) -> None:
        """So many were made."""
        self._made += moves

    @property
    def left(self) -> int:
        """Moves that the next plan may make."""
        return max(0, min(MOST_AT_ONCE, int(self._per_job * self._came) - self._made))


def without(nodes: Sequence[Node], claims: Sequence[Claim]) -> tuple[Node, ...]:
    """The nodes less what is claimed. What is claimed and not free yet counts once, but for what it draws."""
    devices: Counter[str] = Counter()
    millicores: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    busy_s: dict[str, float] = {}
    busy_w: dict[str, float] = {}
    for claim in claims:
        for member in claim.placement.members:
            devices.update(dict.fromkeys(member.devices, claim.shape.share))
            millicores[member.node] += claim.shape.millicores
            memory[member.node] += claim.shape.memory_bytes
            busy_s[member.node] = max(busy_s.get(member.node, 0.0), claim.shape.run_s)
            adds_w = len(member.devices) * claim.shape.active_w
            busy_w[member.node] = busy_w.get(member.node, 0.0) + adds_w
    return tuple(
        replace(
            node,
            free_millicores=max(0, node.free_millicores - millicores[node.id]),
            free_memory_bytes=max(0, node.free_memory_bytes - memory[node.id]),
            devices=tuple(replace(device, free=max(0, device.free - devices[device.id])) for device in node.devices),
            busy_s=max(node.busy_s, busy_s[node.id]),
            busy_w=node.busy_w + busy_w[node.id],
        )
        if node.id in millicores
        else node
        for node in nodes
    )


def not_yet(problem: Problem, plan: Plan) -> set[str]:
    """The jobs that the plan starts in room that is not free before others have left it."""
    if not plan.moves:
        return set()
    jobs = {job.id: job for job in problem.jobs}
    nodes = {node.id: node for node in problem.nodes}
    late: set[str] = set()
    for placement in plan.placements:
        shape = jobs[placement.job].shapes[placement.shape]
        claim = Claim(placement=placement, shape=shape, epoch=0, since_s=0.0)
        if all(_has_room(nodes[member.node], member.devices, shape) for member in placement.members):
            names = [member.node for member in placement.members]
            nodes |= {node.id: node for node in without([nodes[name] for name in names], [claim])}
        else:
            late.add(placement.job)
    return late


def _has_room(node: Node, devices: Sequence[str], shape: Shape) -> bool:
    free = {device.id: device.free for device in node.devices}
    return (
        node.free_millicores >= shape.millicores
        and node.free_memory_bytes >= shape.memory_bytes
        and all(free[device] >= shape.share for device in devices)
    )
