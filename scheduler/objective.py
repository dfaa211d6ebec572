"""What a plan costs, in joules, and whom it keeps waiting. The one evaluator: planner, reports and benchmarks use it.

Two measures, compared in this order:

1. *Waiting*, tier by tier: a tier is the jobs of one priority, the highest first. A tier's waiting is the sum of the
   start weights of its jobs that the plan leaves waiting. Tiers are lexicographic: no amount of work of a lower
   priority outbids a job of a higher one. A job that fits starts now, because a waiting job always weighs something.
2. *Cost*: the objective of a plan that starts jobs now, term by term in `evaluate`.

A job that no set of the present nodes could ever run is no part of either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler.feasibility import possible_shapes, total_room
from scheduler.plan import Cost, Placement
from scheduler.problem import WHOLE_DEVICE, Job, Node, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Stake:
    """What hangs on one job. `shapes` are the indices of those the present nodes could carry, were they all free.

    `weight` is what it adds to its tier's waiting, in thousandths of W * devices: an integer, so that two plans compare
    exactly. `wait_j` is the price of waiting to the horizon; `deferred_j` the energy of its cheapest
    shape, which stays to be spent, so that deferral never saves a job's own work (J; PUE is in neither).
    """

    shapes: tuple[int, ...]
    weight: int
    wait_j: float
    deferred_j: float


def stakes(problem: Problem) -> dict[str, Stake]:
    """The stake of every job that is possible on the present nodes, by job id.

    A job of several shapes waits with the devices of its smallest one, a begun one counted whole, and at least one. The
    weight is at least 1 per device.
    """
    found: dict[str, Stake] = {}
    if not problem.jobs:
        return found
    rooms = total_room(problem.nodes)
    for job in problem.jobs:
        shapes = possible_shapes(job, rooms)
        if shapes:
            size = max(1, min(job.shapes[index].size for index in shapes))
            found[job.id] = Stake(
                shapes=shapes,
                weight=max(1, round(1000 * job.wait_w)) * size,
                wait_j=job.wait_w * size * problem.horizon_s,
                deferred_j=min(job.shapes[index].work_j for index in shapes),
            )
    return found


def waiting(problem: Problem, placements: Sequence[Placement]) -> tuple[int, ...]:
    """Waiting of each tier, the highest priority first, in thousandths of W * devices. Smaller tuples are better.

    The job of a reservation is a tier of its own, above the others of its priority.
    """
    problem = problem.ranked()
    placed = {placement.job for placement in placements}
    staked = stakes(problem)
    possible = [job for job in problem.jobs if job.id in staked]
    return tuple(
        sum(staked[job.id].weight for job in possible if job.priority == priority and job.id not in placed)
        for priority in tiers(possible)
    )


def tiers(jobs: Sequence[Job]) -> list[int]:
    """The priorities that occur, the highest first."""
    return sorted({job.priority for job in jobs}, reverse=True)


def evaluate(problem: Problem, placements: Sequence[Placement]) -> Cost:
    """The objective of starting `placements` now and nothing else, in J, over the horizon H = `horizon_s`.

    PUE multiplies all energy; waiting is a service and stands outside. Energy of work is charged whole, beyond H too.

    - `off_j`: PUE * sum P_off * H, over all nodes.
    - `on_j`: PUE * sum (P_base - P_off) * on-time. A node that is on and cannot be switched stays on for all of H. One
      that can be switched is off when empty; otherwise it is on until its last job ends, present ones included, H at
      most.
    - `boot_j`: PUE * sum E_boot over the nodes that are off and get work. The job's clock and its node's on-time start
      when the node is ready.
    - `work_j`: PUE * (sum size * active_w * run_s of the placed jobs in the shapes they got, whole devices only, + what
      shares and sockets add). A device draws its active power once, whoever shares it: shares add nothing on a device
      in use, and the largest active_w * run_s among them on one at bare idle. Sockets that wake up on a node draw
      `socket_w` for the longest run placed there.
    - `deferred_j`: PUE * the work of the cheapest possible shape of each possible job that waits.
    - `wait_j`: sum wait_w * size * H of the same jobs, and boot_wait_w * boot_s for each boot.
    - `late_j`: sum wait_w * size * (run_s - that of the fastest shape of its kind) of the placed jobs whose size is
      the plan's to choose, without what power caps add. `size` is that of the smallest shape, as for waiting. Without
      it the smallest would be best however many devices are idle.
    - `stage_j`: sum wait_w * size * staging of the placed jobs in the shapes they got: how long their nodes fetch what
      they need. Their devices draw nothing above idle meanwhile, and their runs end as much later.

    With `Problem.fill` all of this is said of `Problem.shared_out`.
    """
    problem = problem.shared_out()
    horizon, pue = problem.horizon_s, problem.pue
    jobs = {job.id: job for job in problem.jobs}
    ends: dict[str, float] = {}
    work = late = stage = 0.0
    for placement in placements:
        shape = jobs[placement.job].shapes[placement.shape]
        work += shape.work_j
        late += jobs[placement.job].late_j(placement.shape)
        staged_s = jobs[placement.job].staged_s(member.node for member in placement.members)
        stage += jobs[placement.job].stage_j(placement.shape, staged_s)
        for member in placement.members:
            ends[member.node] = max(ends.get(member.node, 0.0), staged_s + shape.run_s)
    placed = {placement.job for placement in placements}
    left = [stake for job, stake in stakes(problem).items() if job not in placed]
    booting = [node for node in problem.nodes if not node.on and node.id in ends]
    return Cost(
        off_j=pue * sum(node.power.off_w * horizon for node in problem.nodes),
        on_j=pue
        * sum((node.power.base_w - node.power.off_w) * on_time_s(node, ends, horizon) for node in problem.nodes),
        boot_j=pue * sum(node.power.boot_j for node in booting),
        work_j=pue * (work + _shares_j(problem, jobs, placements) + _sockets_j(problem, jobs, placements)),
        deferred_j=pue * sum(stake.deferred_j for stake in left),
        wait_j=sum(stake.wait_j for stake in left) + sum(problem.boot_wait_w * node.power.boot_s for node in booting),
        late_j=late,
        stage_j=stage,
    )


def _shares_j(problem: Problem, jobs: Mapping[str, Job], placements: Sequence[Placement]) -> float:
    """Energy of the devices that wake up for shares, in J."""
    bare = {device.id for node in problem.nodes for device in node.devices if device.free == WHOLE_DEVICE}
    longest: dict[str, float] = {}
    for placement in placements:
        shape = jobs[placement.job].shapes[placement.shape]
        if shape.shared:
            for device in (device for member in placement.members for device in member.devices):
                longest[device] = max(longest.get(device, 0.0), shape.active_w * shape.run_s)
    return sum(joules for device, joules in longest.items() if device in bare)


def _sockets_j(problem: Problem, jobs: Mapping[str, Job], placements: Sequence[Placement]) -> float:
    """Energy of the CPU sockets that wake up, in J."""
    cores: dict[str, int] = {}
    longest_s: dict[str, float] = {}
    for placement in placements:
        shape = jobs[placement.job].shapes[placement.shape]
        for member in placement.members:
            cores[member.node] = cores.get(member.node, 0) + shape.millicores
            longest_s[member.node] = max(longest_s.get(member.node, 0.0), shape.run_s)
    total = 0.0
    for node in problem.nodes:
        width = node.power.socket_millicores
        if node.id in cores and width:
            before = node.cpu_millicores - node.free_millicores
            woken = -(-(before + cores[node.id]) // width) + (-before // width)
            total += woken * node.power.socket_w * longest_s[node.id]
    return total


def on_time_s(node: Node, ends: Mapping[str, float], horizon_s: float) -> float:
    """How long the node is on within the horizon, in s. `ends` is when the last job placed on each node ends, by id."""
    if node.on and not node.can_switch:
        return horizon_s
    return min(horizon_s, max(node.busy_s if node.on else 0.0, ends.get(node.id, 0.0)))
