"""The best plans of a tiny problem by trying every one. Shares nothing with the planner; slow and plain on purpose."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import ceil, floor

from scheduler.problem import WHOLE_DEVICE, Job, Node, Problem, Shape

Start = tuple[int, tuple[str, ...]]
"""A shape's index and the nodes of its members, in the problem's order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The least waiting by tier (thousandths of W * devices), the least cost of such plans (J), and all that have both.

    A plan says which job starts in which shape on which nodes.
    """

    waiting: tuple[int, ...]
    cost_j: float
    plans: list[dict[str, Start]]


def best(problem: Problem) -> Best:
    """Tries every plan of the problem."""
    jobs = [job for job in problem.jobs if _possible(problem, job)]
    ranked = [(_waiting(problem, jobs, plan), _cost_j(problem, jobs, plan), plan) for plan in _plans(problem, jobs, {})]
    waiting = min(entry[0] for entry in ranked)
    cost_j = min(cost for waits, cost, _ in ranked if waits == waiting)
    tolerance = 1e-9 * abs(cost_j)
    plans = [plan for waits, cost, plan in ranked if waits == waiting and cost <= cost_j + tolerance]
    return Best(waiting=waiting, cost_j=cost_j, plans=plans)


def _plans(problem: Problem, jobs: list[Job], plan: dict[str, Start]) -> Iterator[dict[str, Start]]:
    if not jobs:
        yield dict(plan)
        return
    job, rest = jobs[0], jobs[1:]
    yield from _plans(problem, rest, plan)
    for index, shape in enumerate(job.shapes):
        for nodes in combinations(problem.nodes, shape.members):
            plan[job.id] = (index, tuple(node.id for node in nodes))
            staged_s = _staged_s(job, plan[job.id][1])
            barred = any(_is_kept_from(problem, node, job, shape, staged_s) for node in nodes)
            allowed = not barred and _keeps_budgets(problem, plan)
            if allowed and all(_holds(problem, node, plan) for node in nodes):
                yield from _plans(problem, rest, plan)
            del plan[job.id]


def _is_kept_from(problem: Problem, node: Node, job: Job, shape: Shape, staged_s: float) -> bool:
    kept = problem.reservation
    if kept is None or node.id not in kept.nodes or job.id == kept.job:
        return False
    first = next(each for each in problem.jobs if each.id == kept.job)
    return job.priority <= first.priority and shape.run_s + staged_s > kept.free_s


def _staged_s(job: Job, nodes: Iterable[str]) -> float:
    """How long the slowest of the nodes fetches."""
    return max(next((one.seconds for one in job.staging if name in one.nodes), job.stage_s) for name in nodes)


def _keeps_budgets(problem: Problem, plan: dict[str, Start]) -> bool:
    """Whether no group of nodes is brought above its budget. Whole milliwatts, as the problem counts them."""

    def most_mw(node: Node, there: list[Shape]) -> int:
        power, used = node.power, bool(there)
        if not node.on and not used:
            return ceil(power.off_w * 1000)
        draws = ceil(power.base_w * 1000) + ceil(node.busy_w * 1000)
        draws += sum(shape.devices * ceil(shape.active_w * 1000) for shape in there)
        return max(draws, ceil(power.boot_j / power.boot_s * 1000)) if node.booting or not node.on else draws

    for budget in problem.budgets:
        nodes = [node for node in problem.nodes if node.id in budget.nodes]
        before = sum(most_mw(node, []) for node in nodes)
        after = sum(most_mw(node, _on(problem, node, plan)) for node in nodes)
        if after > before and after > floor(budget.watts * 1000):
            return False
    return True


def _holds(problem: Problem, node: Node, plan: dict[str, Start]) -> bool:
    if not node.open or not (node.on or node.can_switch):
        return False
    there = _on(problem, node, plan)
    kinds = {shape.kind for shape in there}
    return (
        all(
            sum(shape.devices for shape in there if shape.kind == kind)
            <= sum(device.kind == kind and device.free == WHOLE_DEVICE for device in node.devices)
            for kind in kinds
        )
        and sum(shape.millicores for shape in there) <= node.free_millicores
        and sum(shape.memory_bytes for shape in there) <= node.free_memory_bytes
        and not (node.container_fault and any(shape.in_container for shape in there))
        and (node.can_cap or not any(shape.cap_w for shape in there))
    )


def _on(problem: Problem, node: Node, plan: dict[str, Start]) -> list[Shape]:
    """Shapes with a member on the node."""
    return [job.shapes[plan[job.id][0]] for job in problem.jobs if job.id in plan and node.id in plan[job.id][1]]


def _possible(problem: Problem, job: Job) -> list[Shape]:
    """The job's shapes that the nodes could carry, were they empty, on and open."""

    def could(node: Node, shape: Shape) -> bool:
        have = sum(device.kind == shape.kind for device in node.devices)
        return (
            have >= shape.devices
            and node.cpu_millicores >= shape.millicores
            and node.memory_bytes >= shape.memory_bytes
            and not (node.container_fault and shape.in_container)
            and (node.can_cap or not shape.cap_w)
        )

    return [s for s in job.shapes if sum(could(node, s) for node in problem.nodes) >= s.members]


def _waiting(problem: Problem, jobs: list[Job], plan: dict[str, Start]) -> tuple[int, ...]:
    first = problem.reservation.job if problem.reservation else None
    tiers = sorted({(job.priority, job.id == first) for job in jobs}, reverse=True)
    waiting = [0] * len(tiers)
    for job in jobs:
        if job.id not in plan:
            smallest = min(shape.members * shape.devices for shape in _possible(problem, job))
            waiting[tiers.index((job.priority, job.id == first))] += max(1, round(job.wait_w * 1000)) * smallest
    return tuple(waiting)


def _cost_j(problem: Problem, jobs: list[Job], plan: dict[str, Start]) -> float:
    energy = wait = 0.0
    for node in problem.nodes:
        there = [job for job in jobs if job.id in plan and node.id in plan[job.id][1]]
        ends = [_staged_s(job, plan[job.id][1]) + job.shapes[plan[job.id][0]].run_s for job in there]
        if node.on and not node.can_switch:
            on_s = problem.horizon_s
        else:
            on_s = min(problem.horizon_s, max([*ends, node.busy_s if node.on else 0.0]))
        share = 1 - problem.fill if node.can_switch else 1.0
        energy += node.power.off_w * problem.horizon_s + share * (node.power.base_w - node.power.off_w) * on_s
        if ends and not node.on:
            energy += node.power.boot_j
            wait += problem.boot_wait_w * node.power.boot_s
    for job in jobs:
        if job.id in plan:
            shape = job.shapes[plan[job.id][0]]
            energy += shape.members * shape.devices * _device_w(problem, shape) * shape.run_s
            wait += job.wait_w * shape.members * shape.devices * _staged_s(job, plan[job.id][1])
            if len({other.members * other.devices for other in job.shapes}) > 1:
                fewest = min(other.members * other.devices for other in job.shapes)
                fastest_s = min(other.run_s for other in job.shapes if other.kind == shape.kind)
                wait += job.wait_w * fewest * (shape.run_s / shape.slower - fastest_s)
        else:
            shapes = _possible(problem, job)
            energy += min(s.members * s.devices * _device_w(problem, s) * s.run_s for s in shapes)
            wait += job.wait_w * min(s.members * s.devices for s in shapes) * problem.horizon_s
    return problem.pue * energy + wait


def _device_w(problem: Problem, shape: Shape) -> float:
    """What one device of the shape is charged: its own draw, and its part of the cheapest node that has its kind."""
    shares: list[float] = []
    for node in problem.nodes:
        if any(device.kind == shape.kind for device in node.devices):
            carriers = sum((device.kind == "cpu") == (shape.kind == "cpu") for device in node.devices)
            shares.append((node.power.base_w - node.power.off_w) / carriers if node.can_switch else 0.0)
    return shape.active_w + problem.fill * min(shares)
