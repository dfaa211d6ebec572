"""Independent checker of a plan. It shares no code with the planner: it knows `problem.py` and `plan.py` only, and
works out again whatever it can, so that a mistake of the planner is not repeated here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.plan import Outcome, Placement, Plan
from scheduler.problem import WHOLE_DEVICE, Job, Node, Problem, Running, Shape

TOLERANCE = 1e-9
"""Relative difference between two sums of the same terms that is put down to rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that the plan breaks: a stable code for programs, a sentence for people."""

    code: str
    message: str


def verify(problem: Problem, plan: Plan) -> list[Violation]:
    """Everything that is wrong with the plan; empty if nothing is.

    Checked: every gang is placed whole on distinct nodes that are open and on or switchable, on devices of the right
    kind and isolation, none of which gives more than it has free; no node gives more CPU or memory than it has left,
    and none that can run no container, or set no power limit, gets one; nobody is slowed down more than it allows; no
    more moves and resizes than allowed, of jobs that run and may be moved, or resized, so; a verdict for every job in
    order, each with reasons unless placed; jobs are called impossible exactly when they are; no job starts in place of
    one with precedence that would fit there; boots and switch-offs fit the placements; every term of the cost; the
    bound does not exceed the objective; nobody starts on nodes that are kept for another longer than they are kept; and
    no group of nodes is brought above its power budget. Jobs that are to start later may wait until then, are not
    placed, and take no part in the rest.
    """
    if plan.timetable is not None:
        return [*_later(problem, plan), *verify(*_of_now(problem, plan))]
    problem = problem.ranked()
    nodes = {node.id: node for node in problem.nodes}
    jobs = {job.id: job for job in problem.jobs}
    # Moved jobs leave their devices before anything starts: with those free again, a move is a placement like others.
    free = _released(problem, plan)
    those = jobs | {running.job.id: running.every_shape for running in problem.running}
    violations = [*_moves(problem, plan), *_placements((*plan.placements, *plan.moves), free, those)]
    if violations:
        return violations  # the other checks would stumble over what these found
    possible = _possible(problem)
    return [
        *_capacity((*plan.placements, *plan.moves), free, those),
        *_caps((*plan.placements, *plan.moves), those),
        *_verdicts(problem, plan, possible),
        *_precedence(problem, plan, possible),
        *_reservation(problem, plan),
        *_budgets(problem, plan),
        *_power_steps(plan, nodes),
        *_cost(problem.shared_out(), plan),
        *_proof(plan),
    ]


def _later(problem: Problem, plan: Plan) -> Iterator[Violation]:
    assert plan.timetable is not None
    until = {wait.job: wait.until_s for wait in problem.ahead.waits} if problem.ahead is not None else {}
    verdicts = {verdict.job: verdict.outcome for verdict in plan.verdicts}
    for later in plan.timetable.later:
        if not 0 < later.start_s <= until.get(later.job, -math.inf):
            message = f"job {later.job} is to start in {later.start_s:g} s, and may not wait until then"
            yield Violation(code="too_late", message=message)
        if verdicts.get(later.job) != Outcome.WAITING:
            message = f"job {later.job} is to start later, and its verdict is {verdicts.get(later.job)}"
            yield Violation(code="wrong_verdict", message=message)
    for job, count in Counter(later.job for later in plan.timetable.later).items():
        if count > 1:
            yield Violation(code="placed_twice", message=f"job {job} is to start later {count} times")
    if plan.timetable.bound > plan.timetable.cost + TOLERANCE * abs(plan.timetable.cost):
        message = f"the bound {plan.timetable.bound:g} of the timetable is above its cost {plan.timetable.cost:g}"
        yield Violation(code="bound", message=message)


def _of_now(problem: Problem, plan: Plan) -> tuple[Problem, Plan]:
    """Both without the jobs that are to start later."""
    assert plan.timetable is not None
    later = {one.job for one in plan.timetable.later}
    jobs = tuple(job for job in problem.jobs if job.id not in later)
    verdicts = tuple(verdict for verdict in plan.verdicts if verdict.job not in later)
    return replace(problem, jobs=jobs, ahead=None), replace(plan, verdicts=verdicts, timetable=None)


def _moves(problem: Problem, plan: Plan) -> Iterator[Violation]:
    running = {running.job.id: running for running in problem.running}
    resized = {move.job for move in plan.moves if move.job in running and _resizes(running[move.job], move)}
    if len(plan.moves) - len(resized) > problem.moves:
        message = f"{len(plan.moves) - len(resized)} jobs are moved, and {problem.moves} may be"
        yield Violation(code="moves_exceeded", message=message)
    if len(resized) > problem.resizes:
        message = f"{len(resized)} jobs are resized, and {problem.resizes} may be"
        yield Violation(code="resizes_exceeded", message=message)
    for move in plan.moves:
        if move.job not in running:
            yield Violation(code="unknown_job", message=f"{move.job} is moved but does not run")
        elif move.job not in resized and not running[move.job].may_move:
            yield Violation(code="may_not_move", message=f"{move.job} is moved and may not be")


def _resizes(running: Running, move: Placement) -> bool:
    """Whether the job gets a shape that it has for that purpose only."""
    return move.shape >= len(running.job.shapes)


def _released(problem: Problem, plan: Plan) -> dict[str, Node]:
    """The nodes as they are once the jobs that move have stopped."""
    nodes = {node.id: node for node in problem.nodes}
    moved = {move.job for move in plan.moves}
    for running in problem.running:
        if running.job.id not in moved:
            continue
        shape = running.job.shapes[running.shape]
        for member in running.members:
            node = nodes[member.node]
            nodes[node.id] = replace(
                node,
                free_millicores=node.free_millicores + shape.millicores,
                free_memory_bytes=node.free_memory_bytes + shape.memory_bytes,
                devices=tuple(
                    replace(device, free=device.free + shape.share) if device.id in member.devices else device
                    for device in node.devices
                ),
            )
    return nodes


def _placements(
    placements: Sequence[Placement], nodes: Mapping[str, Node], jobs: Mapping[str, Job]
) -> Iterator[Violation]:
    given: Counter[str] = Counter()
    for job, count in Counter(placement.job for placement in placements).items():
        if count > 1:
            yield Violation(code="placed_twice", message=f"job {job} is placed {count} times")
    for placement in placements:
        job = jobs.get(placement.job)
        if job is None:
            yield Violation(code="unknown_job", message=f"{placement.job} is placed but not in the problem")
            continue
        if not 0 <= placement.shape < len(job.shapes):
            yield Violation(code="unknown_shape", message=f"job {job.id} has no shape {placement.shape}")
            continue
        shape = job.shapes[placement.shape]
        places = [member.node for member in placement.members]
        if len(places) != shape.members:
            yield Violation(code="not_whole", message=f"job {job.id} has {len(places)} of {shape.members} members")
        if len(set(places)) < len(places):
            yield Violation(code="shared_node", message=f"job {job.id} has two members on one node")
        for member in placement.members:
            node = nodes.get(member.node)
            if node is None:
                yield Violation(code="unknown_node", message=f"job {job.id} is placed on {member.node}, unknown")
                continue
            if not node.open:
                yield Violation(code="closed_node", message=f"job {job.id} is placed on {node.id}, which is closed")
            if not node.on and not node.can_switch:
                yield Violation(code="node_off", message=f"job {job.id} is placed on {node.id}, off for good")
            if len(member.devices) != shape.devices:
                message = f"job {job.id} gets {len(member.devices)} of {shape.devices} devices on {node.id}"
                yield Violation(code="device_count", message=message)
            yield from _devices(job, shape, node, member.devices, given)


def _devices(job: Job, shape: Shape, node: Node, devices: tuple[str, ...], given: Counter[str]) -> Iterator[Violation]:
    """Checks the devices of one member and notes in `given` how many thousandths of them are taken."""
    present = {device.id: device for device in node.devices}
    for name in devices:
        device = present.get(name)
        if device is None:
            yield Violation(code="foreign_device", message=f"job {job.id}: {name} is not a device of {node.id}")
            continue
        if device.kind != shape.kind:
            yield Violation(code="wrong_kind", message=f"job {job.id} wants {shape.kind}, {name} is {device.kind}")
        if device.free < shape.share:
            yield Violation(code="device_busy", message=f"job {job.id}: {name} has {device.free} thousandths free")
        if given[name] + shape.share > WHOLE_DEVICE:
            yield Violation(code="device_twice", message=f"device {name} is given twice, again to job {job.id}")
        elif given[name] + shape.share > device.free:
            yield Violation(
                code="share_exceeded", message=f"device {name} gives more than the {device.free} it has free"
            )
        if shape.share < WHOLE_DEVICE and device.isolation < shape.isolation:
            message = f"job {job.id} wants isolation {shape.isolation.name}, {name} gives {device.isolation.name}"
            yield Violation(code="isolation", message=message)
        given[name] += shape.share


def _capacity(
    placements: Sequence[Placement], nodes: Mapping[str, Node], jobs: Mapping[str, Job]
) -> Iterator[Violation]:
    millicores: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for placement in placements:
        shape = jobs[placement.job].shapes[placement.shape]
        for member in placement.members:
            millicores[member.node] += shape.millicores
            memory[member.node] += shape.memory_bytes
            if shape.in_container and nodes[member.node].container_fault != "":
                message = f"job {placement.job} needs a container, and {member.node} can run none"
                yield Violation(code="no_container", message=message)
            if shape.cap_w and not nodes[member.node].can_cap:
                message = f"job {placement.job} is to be capped, and {member.node} cannot set a power limit"
                yield Violation(code="cannot_cap", message=message)
    for name, node in nodes.items():
        if millicores[name] > node.free_millicores:
            message = f"{name} gives {millicores[name]} of {node.free_millicores} free millicores"
            yield Violation(code="cores_exceeded", message=message)
        if memory[name] > node.free_memory_bytes:
            message = f"{name} gives {memory[name]} of {node.free_memory_bytes} free bytes"
            yield Violation(code="memory_exceeded", message=message)


def _caps(placements: Sequence[Placement], jobs: Mapping[str, Job]) -> Iterator[Violation]:
    """Finds caps on devices that others share, and those that slow a job down more than it allows."""
    for placement in placements:
        job = jobs[placement.job]
        shape = job.shapes[placement.shape]
        if not shape.cap_w:
            continue
        if not shape.devices or shape.share < WHOLE_DEVICE:
            message = f"job {job.id} is to be capped and has no whole device"
            yield Violation(code="capped_share", message=message)
        fastest_s = min(
            (each.run_s for each in job.shapes if not each.cap_w and _covers(each, shape) and _covers(shape, each)),
            default=0.0,
        )
        if shape.run_s > fastest_s * (1 + job.may_slow) * (1 + TOLERANCE):
            message = f"job {job.id} may run {job.may_slow:.1%} longer, and {shape.run_s} s is more than that"
            yield Violation(code="too_slow", message=message)


def _verdicts(problem: Problem, plan: Plan, possible: Mapping[str, list[Shape]]) -> Iterator[Violation]:
    if [verdict.job for verdict in plan.verdicts] != [job.id for job in problem.jobs]:
        yield Violation(code="verdicts", message="the verdicts are not one for each job in the problem's order")
    placed = {placement.job for placement in plan.placements}
    for verdict in plan.verdicts:
        true = (
            Outcome.PLACED
            if verdict.job in placed
            else Outcome.WAITING
            if verdict.job in possible
            else Outcome.IMPOSSIBLE
        )
        if verdict.outcome != true:
            message = f"job {verdict.job} is called {verdict.outcome} but is {true}"
            yield Violation(code="wrong_verdict", message=message)
        if bool(verdict.reasons) == (true == Outcome.PLACED):
            yield Violation(code="reasons", message=f"job {verdict.job}: reasons go with every verdict but placed")


def _precedence(problem: Problem, plan: Plan, possible: Mapping[str, list[Shape]]) -> Iterator[Violation]:
    """Finds a job that waits although it could stand where a job without precedence over it was placed.

    Precedence is a higher priority, or an earlier place in line between jobs that are otherwise the same. Only places
    at least as large as the waiting job needs, on devices of its kind, are looked at: those it could simply take over.
    """
    jobs = {job.id: job for job in problem.jobs}
    placed = {placement.job for placement in plan.placements}
    waiting = [job for job in problem.jobs if job.id in possible and job.id not in placed]
    for placement in plan.placements:
        holder = jobs[placement.job]
        place = holder.shapes[placement.shape]
        for job in waiting:
            same = _alike(job) == _alike(holder)
            ahead = job.priority > holder.priority or (same and job.order < holder.order)
            if ahead and any(
                _covers(place, shape)
                and (place.cap_w or not shape.cap_w)
                and not _is_kept_from(problem, job, shape, placement)
                and not (problem.budgets and _member_w(shape) > _member_w(place))
                for shape in job.shapes
            ):
                message = f"job {job.id} waits while {holder.id}, which it has precedence over, holds a place it fits"
                yield Violation(code="precedence", message=message)


def _alike(job: Job) -> tuple[object, ...]:
    return (job.priority, job.wait_w, job.stage_s, job.shapes, job.staging)


def _reservation(problem: Problem, plan: Plan) -> Iterator[Violation]:
    jobs = {job.id: job for job in problem.jobs}
    for placement in plan.placements:
        job = jobs[placement.job]
        if _is_kept_from(problem, job, job.shapes[placement.shape], placement):
            message = f"job {job.id} starts on nodes that are kept for another, and is not expected to end in time"
            yield Violation(code="kept_node", message=message)


def _is_kept_from(problem: Problem, job: Job, shape: Shape, placement: Placement) -> bool:
    """Whether nodes of the placement are kept from the job in this shape."""
    kept = problem.reservation
    if kept is None or all(member.node not in kept.nodes for member in placement.members):
        return False
    if _staged_s(job, placement) + shape.run_s <= kept.free_s:
        return False
    return any(first.id == kept.job and first.priority > job.priority for first in problem.jobs)


def _budgets(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Finds budgets that the plan passes: the sum, over the nodes, of the most that each draws from now on."""
    jobs = {job.id: job for job in problem.jobs}
    nodes = {node.id: node for node in problem.nodes}
    wakes: dict[str, dict[str, float]] = {}
    for placement in plan.placements:
        shape = jobs[placement.job].shapes[placement.shape]
        for member in placement.members:
            devices = wakes.setdefault(member.node, {})
            for name in member.devices:
                devices[name] = max(devices.get(name, 0.0), shape.active_w)
    for budget in problem.budgets:
        before = sum(_drawn_mw(nodes[name], None) for name in budget.nodes)
        after = sum(_drawn_mw(nodes[name], wakes.get(name)) for name in budget.nodes)
        if after > before and after > math.floor(budget.watts * 1000):
            message = f"budget {budget.name} is {budget.watts} W, and its nodes would draw {after / 1000} W"
            yield Violation(code="over_budget", message=message)


def _drawn_mw(node: Node, wakes: Mapping[str, float] | None) -> int:
    """The most a node draws, in whole milliwatts, each term rounded up. `wakes` are the devices that the plan gives
    away on it, with what each draws (W); None if it gets no work.
    """
    if not node.on and wakes is None:
        return math.ceil(node.power.off_w * 1000)
    draws = math.ceil(node.power.base_w * 1000) + math.ceil(node.busy_w * 1000)
    if node.power.socket_millicores:
        sockets = math.ceil(node.cpu_millicores / node.power.socket_millicores)
        draws += sockets * math.ceil(node.power.socket_w * 1000)
    for device in node.devices:
        if wakes is not None and device.id in wakes and device.free == WHOLE_DEVICE:
            draws += math.ceil(wakes[device.id] * 1000)
    boots = node.power.boot_s > 0 and (node.booting or not node.on)
    return max(draws, math.ceil(node.power.boot_j / node.power.boot_s * 1000)) if boots else draws


def _member_w(shape: Shape) -> float:
    """What a member of the shape adds to its node where nothing is shared, in W."""
    return shape.devices * shape.active_w


def _covers(place: Shape, shape: Shape) -> bool:
    """Whether a gang of `shape` can stand where one of `place` stands."""
    return (
        (not shape.devices or shape.kind == place.kind)
        and shape.members <= place.members
        and shape.devices <= place.devices
        and (not shape.devices or shape.share <= place.share)
        and (not shape.devices or shape.share == WHOLE_DEVICE or shape.isolation <= place.isolation)
        and shape.millicores <= place.millicores
        and shape.memory_bytes <= place.memory_bytes
        and shape.in_container <= place.in_container
    )


def _power_steps(plan: Plan, nodes: Mapping[str, Node]) -> Iterator[Violation]:
    used = {member.node for placement in plan.placements for member in placement.members}
    joined = {member.node for move in plan.moves for member in move.members}
    steps = {step.node: step for step in plan.power_steps}
    if len(steps) < len(plan.power_steps):
        yield Violation(code="steps_twice", message="a node has two power steps")
    for name, step in steps.items():
        node = nodes.get(name)
        if node is None or not node.can_switch or node.on == step.on:
            yield Violation(code="step_useless", message=f"{name} cannot be switched {'on' if step.on else 'off'}")
        elif not step.on and (name in used | joined or _is_busy(node)):
            yield Violation(code="step_off_busy", message=f"{name} would be switched off with work on it")
        elif step.on and name not in used:
            yield Violation(code="step_idle_boot", message=f"{name} would be switched on for nothing")
    for name in sorted(used):
        if not nodes[name].on and name not in steps:
            yield Violation(code="step_missing", message=f"{name} is off, gets work and is not switched on")
    for name in sorted(joined):
        if not nodes[name].on:
            yield Violation(code="moved_to_off", message=f"a job is moved to {name}, which is off")


def _is_busy(node: Node) -> bool:
    return node.busy_s > 0 or any(device.free < WHOLE_DEVICE for device in node.devices)


def _cost(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Works out every term of the objective again; `problem` has `fill` in its prices."""
    jobs = {job.id: job for job in problem.jobs}
    possible = _possible(problem)
    horizon, pue = problem.horizon_s, problem.pue
    last_end: dict[str, float] = {}
    work = _woken_j(problem, plan, jobs)
    deferred = wait = late = stage = 0.0
    for placement in plan.placements:
        shape = jobs[placement.job].shapes[placement.shape]
        late += _late_j(jobs[placement.job], shape)
        if shape.share == WHOLE_DEVICE:
            work += shape.members * shape.devices * shape.active_w * shape.run_s
        staged_s = _staged_s(jobs[placement.job], placement)
        stage += jobs[placement.job].wait_w * max(1, shape.members * shape.devices) * staged_s
        for member in placement.members:
            last_end[member.node] = max(staged_s + shape.run_s, last_end.get(member.node, 0.0))
    off = on = boot = 0.0
    for node in problem.nodes:
        off += node.power.off_w * horizon
        above_off = node.power.base_w - node.power.off_w
        end = last_end.get(node.id, 0.0)
        if not node.on:
            on += above_off * min(end, horizon)
            if end:
                boot += node.power.boot_j
                wait += problem.boot_wait_w * node.power.boot_s
        elif node.can_switch:
            on += above_off * min(max(end, node.busy_s), horizon)
        else:
            on += above_off * horizon
    placed = {placement.job for placement in plan.placements}
    for name, shapes in possible.items():
        if name not in placed:
            deferred += min(
                shape.members * shape.devices * shape.active_w * shape.run_s * (shape.share == WHOLE_DEVICE)
                for shape in shapes
            )
            wait += jobs[name].wait_w * max(1, min(shape.members * shape.devices for shape in shapes)) * horizon
    for name, claimed, true in (
        ("off_j", plan.cost.off_j, pue * off),
        ("on_j", plan.cost.on_j, pue * on),
        ("boot_j", plan.cost.boot_j, pue * boot),
        ("work_j", plan.cost.work_j, pue * work),
        ("deferred_j", plan.cost.deferred_j, pue * deferred),
        ("wait_j", plan.cost.wait_j, wait),
        ("late_j", plan.cost.late_j, late),
        ("stage_j", plan.cost.stage_j, stage),
    ):
        if not math.isclose(claimed, true, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Violation(code="cost", message=f"{name} is {claimed} J, but the placements cost {true} J")


def _staged_s(job: Job, placement: Placement) -> float:
    """When the last node of the placement has what the job needs, in s."""
    said = {name: one.seconds for one in job.staging for name in one.nodes}
    return max(said.get(member.node, job.stage_s) for member in placement.members)


def _late_j(job: Job, shape: Shape) -> float:
    """What a job of several sizes is charged for not running in the fastest of this kind, caps aside, in J."""
    sizes = sorted(other.members * other.devices for other in job.shapes)
    if sizes[0] == sizes[-1]:
        return 0.0
    free_s = shape.run_s / shape.slower
    return job.wait_w * sizes[0] * max(free_s - other.run_s for other in job.shapes if other.kind == shape.kind)


def _woken_j(problem: Problem, plan: Plan, jobs: Mapping[str, Job]) -> float:
    """What devices that are shared and CPU sockets draw because the plan wakes them up, in J."""
    devices: dict[str, float] = {}
    cores: Counter[str] = Counter()
    last_end: dict[str, float] = {}
    for placement in plan.placements:
        shape = jobs[placement.job].shapes[placement.shape]
        for member in placement.members:
            cores[member.node] += shape.millicores
            last_end[member.node] = max(shape.run_s, last_end.get(member.node, 0.0))
            if shape.devices and shape.share < WHOLE_DEVICE:
                (name,) = member.devices
                devices[name] = max(devices.get(name, 0.0), shape.active_w * shape.run_s)
    joules = 0.0
    for node in problem.nodes:
        joules += sum(devices.get(device.id, 0.0) for device in node.devices if device.free == WHOLE_DEVICE)
        width = node.power.socket_millicores
        if width and node.id in last_end:
            used = node.cpu_millicores - node.free_millicores
            sockets = math.ceil((used + cores[node.id]) / width) - math.ceil(used / width)
            joules += sockets * node.power.socket_w * last_end[node.id]
    return joules


def _proof(plan: Plan) -> Iterator[Violation]:
    if not plan.bound_j <= plan.objective_j * (1 + TOLERANCE):
        message = f"the bound {plan.bound_j} J is above the objective {plan.objective_j} J"
        yield Violation(code="bound", message=message)


def _possible(problem: Problem) -> dict[str, list[Shape]]:
    """The shapes of each job that the nodes could carry if all were free, on and open; jobs without any have none."""
    classes = [(nodes[0], len(nodes)) for nodes in _classes(problem.nodes)]
    able: dict[Shape, int] = {}
    possible: dict[str, list[Shape]] = {}
    for job in problem.jobs:
        for shape in job.shapes:
            if shape not in able:
                able[shape] = sum(count for node, count in classes if _could_carry(node, shape))
            if able[shape] >= shape.members:
                possible.setdefault(job.id, []).append(shape)
    return possible


def _classes(nodes: Sequence[Node]) -> Iterable[list[Node]]:
    """Nodes that could carry the same, were they free."""
    found: dict[object, list[Node]] = {}
    for node in nodes:
        devices = tuple(sorted((device.kind, device.isolation) for device in node.devices))
        has = (devices, node.cpu_millicores, node.memory_bytes, node.container_fault == "", node.can_cap)
        found.setdefault(has, []).append(node)
    return found.values()


def _could_carry(node: Node, shape: Shape) -> bool:
    return (
        _has_devices(node, shape)
        and node.cpu_millicores >= shape.millicores
        and node.memory_bytes >= shape.memory_bytes
        and (node.container_fault == "" or not shape.in_container)
        and (node.can_cap or not shape.cap_w)
    )


def _has_devices(node: Node, shape: Shape) -> bool:
    if shape.devices and shape.share < WHOLE_DEVICE:
        return any(device.kind == shape.kind and device.isolation >= shape.isolation for device in node.devices)
    return sum(device.kind == shape.kind for device in node.devices) >= shape.devices
