"""Refuses a problem that makes no sense, naming the field and the remedy, before any search sees it."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from scheduler.problem import CPU_KIND, WHOLE_DEVICE, Job, Node, Problem, Shape

MAX_WAIT_W = 1e6
MAX_SECONDS = 1e9
MAX_W = 1e9
MAX_SLOW = 10.0
ROUNDING = 1e-9


def validate(problem: Problem) -> None:
    """Raises ValueError with every complaint, each naming a field and what it must be."""
    complaints = [*_problem(problem)]
    for node in problem.nodes:
        complaints += _node(node)
    for job in problem.jobs:
        complaints += _job(job)
    if complaints:
        more = f"; and {len(complaints) - 10} more" if len(complaints) > 10 else ""
        raise ValueError("the problem makes no sense: " + "; ".join(complaints[:10]) + more)


def packs(problem: Problem) -> bool:
    """Whether only `scheduler.packing` can plan it: it has shares, jobs without devices, an outlook, or moves on nodes
    that cannot be switched.
    """
    if problem.outlook or (problem.moves and not consolidates(problem)):
        return True
    return any(shape.shared or not shape.devices for job in problem.jobs for shape in job.shapes)


def consolidates(problem: Problem) -> bool:
    """Whether moves are those of `scheduler.consolidate`: nodes can go off."""
    return any(node.can_switch for node in problem.nodes)


def has_several_kinds(node: Node) -> bool:
    """Whether `scheduler.packing` cannot see the node as one of a class."""
    return len({device.kind for device in node.devices}) > 1


def _reservation(problem: Problem) -> Iterator[str]:
    if (kept := problem.reservation) is None:
        return
    yield from _number("free_s of the reservation", kept.free_s, 0.0, MAX_SECONDS)
    if all(job.id != kept.job for job in problem.jobs):
        yield f"the reservation is for {kept.job}, which is no job of the problem"
    unknown = set(kept.nodes) - {node.id for node in problem.nodes}
    if unknown:
        yield f"the reservation keeps {', '.join(sorted(unknown))}, no node of the problem"
    if kept.nodes and packs(problem):
        yield "the reservation keeps nodes, which cannot be where jobs share devices or need none, or with moves"


def _budgets(problem: Problem) -> Iterator[str]:
    yield from _twice("budget", (budget.name for budget in problem.budgets))
    known = {node.id for node in problem.nodes}
    for budget in problem.budgets:
        yield from _number(f"budget {budget.name}: watts", budget.watts, 0.0, MAX_W)
        if unknown := set(budget.nodes) - known:
            yield f"budget {budget.name} names {', '.join(sorted(unknown))}, no node of the problem"
    if problem.budgets and (problem.outlook or problem.moves or problem.resizes):
        yield "there are power budgets: give neither an outlook nor moves, nor resizes"


def _ahead(problem: Problem) -> Iterator[str]:
    if (ahead := problem.ahead) is None:
        return
    starts = [rate.start_s for rate in ahead.rates]
    if not starts or starts[0] > 0 or any(after <= before for before, after in pairwise(starts)):
        yield f"start_s of the rates is {starts}, must begin at 0 or before and rise"
    for rate in ahead.rates:
        yield from _number("per_kwh of a rate", rate.per_kwh, -MAX_W, MAX_W)
    yield from _twice("job that may wait", (wait.job for wait in ahead.waits))
    known = {job.id for job in problem.jobs}
    for wait in ahead.waits:
        yield from _number(f"job {wait.job}: until_s", wait.until_s, 0.0, MAX_SECONDS)
        if wait.job not in known:
            yield f"{wait.job} may wait, and is no job of the problem"
        if problem.reservation is not None and wait.job == problem.reservation.job:
            yield f"the reservation is for {wait.job}, which may wait"


def _problem(problem: Problem) -> Iterator[str]:
    yield from _number("horizon_s", problem.horizon_s, 0.0, MAX_SECONDS, open_below=True)
    yield from _number("pue", problem.pue, 1.0, 100.0)
    yield from _number("fill", problem.fill, 0.0, 1.0)
    yield from _number("boot_wait_w", problem.boot_wait_w, 0.0, MAX_W)
    yield from _reservation(problem)
    yield from _budgets(problem)
    yield from _ahead(problem)
    for name, most in (("moves", problem.moves), ("resizes", problem.resizes)):
        if most < 0:
            yield f"{name} is {most}, must not be negative"
    yield from _twice("node id", (node.id for node in problem.nodes))
    yield from _twice("job id", (job.id for job in problem.jobs))
    yield from _twice("device id", (device.id for node in problem.nodes for device in node.devices))
    if problem.outlook or (problem.moves and not consolidates(problem)):
        for node in problem.nodes:
            if has_several_kinds(node):
                yield f"node {node.id} has devices of several kinds: give neither an outlook nor moves"


def _node(node: Node) -> Iterator[str]:
    name = f"node {node.id}"
    if not 0 <= node.free_millicores <= node.cpu_millicores:
        yield f"{name}: free_millicores is {node.free_millicores}, must be from 0 to {node.cpu_millicores}"
    if not 0 <= node.free_memory_bytes <= node.memory_bytes:
        yield f"{name}: free_memory_bytes is {node.free_memory_bytes}, must be from 0 to {node.memory_bytes}"
    for device in node.devices:
        if not 0 <= device.free <= WHOLE_DEVICE:
            yield f"{name}: free of device {device.id} is {device.free}, must be from 0 to {WHOLE_DEVICE}"
    yield from _number(f"{name}: busy_s", node.busy_s, 0.0, MAX_SECONDS)
    yield from _number(f"{name}: busy_w", node.busy_w, 0.0, MAX_W)
    yield from _number(f"{name}: off_w", node.power.off_w, 0.0, MAX_W)
    yield from _number(f"{name}: base_w (at least off_w)", node.power.base_w, node.power.off_w, MAX_W)
    yield from _number(f"{name}: boot_s", node.power.boot_s, 0.0, MAX_SECONDS)
    yield from _number(f"{name}: socket_w", node.power.socket_w, 0.0, MAX_W)
    if node.power.socket_millicores < 0:
        yield f"{name}: socket_millicores is {node.power.socket_millicores}, must not be negative"
    yield from _number(f"{name}: boot_j", node.power.boot_j, 0.0, MAX_W * MAX_SECONDS)


def _job(job: Job) -> Iterator[str]:
    yield from _number(f"job {job.id}: wait_w", job.wait_w, 0.0, MAX_WAIT_W)
    yield from _number(f"job {job.id}: may_slow", job.may_slow, 0.0, MAX_SLOW)
    yield from _number(f"job {job.id}: stage_s", job.stage_s, 0.0, MAX_SECONDS)
    for one in job.staging:
        yield from _number(f"job {job.id}: seconds of staging", one.seconds, 0.0, MAX_SECONDS)
    yield from _twice(f"job {job.id}: staging of node", (node for one in job.staging for node in one.nodes))
    for index, shape in enumerate(job.shapes):
        name = f"job {job.id}: shape {index}"
        if shape.members < 1:
            yield f"{name}: members is {shape.members}, must be at least 1"
        if bool(shape.devices) != bool(shape.kind):
            yield f"{name}: devices is {shape.devices} and kind {shape.kind!r}; a kind goes with devices, none without"
        if not 1 <= shape.share <= WHOLE_DEVICE or (shape.share < WHOLE_DEVICE and shape.devices != 1):
            yield f"{name}: share is {shape.share}, must be {WHOLE_DEVICE}, or from 1 where devices is 1"
        for field, value in (
            ("devices", shape.devices),
            ("millicores", shape.millicores),
            ("memory_bytes", shape.memory_bytes),
        ):
            if value < 0:
                yield f"{name}: {field} is {value}, must not be negative"
        yield from _number(f"{name}: run_s", shape.run_s, 0.0, MAX_SECONDS, open_below=True)
        yield from _number(f"{name}: active_w", shape.active_w, 0.0, MAX_W)
        yield from _number(f"{name}: cap_w", shape.cap_w, 0.0, MAX_W)
        if shape.cap_w:
            yield from _cap(name, job, shape)


def _cap(name: str, job: Job, shape: Shape) -> Iterator[str]:
    if shape.shared or not shape.devices or shape.kind == CPU_KIND:
        yield f"{name}: cap_w is {shape.cap_w}, and only whole accelerators can be capped; leave it 0"
    free = [other.run_s for other in job.shapes if not other.cap_w and _but_cap(other) == _but_cap(shape)]
    if not free or shape.run_s > min(free) * (1 + job.may_slow) * (1 + ROUNDING):
        yield f"{name}: run_s is {shape.run_s}, must be at most 1 + may_slow times that of the same without a cap"


def _but_cap(shape: Shape) -> Shape:
    """What a shape asks for, whatever its cap and what follows from it."""
    return replace(shape, cap_w=0.0, slower=1.0, run_s=0.0, active_w=0.0)


def _number(name: str, value: float, least: float, most: float, *, open_below: bool = False) -> Iterator[str]:
    low = value > least if open_below else value >= least
    if not (math.isfinite(value) and low and value <= most):
        yield f"{name} is {value}, must be {'above' if open_below else 'at least'} {least:g} and at most {most:g}"


def _twice(name: str, ids: Iterable[str]) -> Iterator[str]:
    for value, count in Counter(ids).items():
        if count > 1:
            yield f"{name} {value} occurs {count} times, must be unique"
