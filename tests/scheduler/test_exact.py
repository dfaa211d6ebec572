"""Small problems with shares and jobs without devices: the best plan there is, found by trying all."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.objective import evaluate, stakes, waiting
from scheduler.plan import MemberPlacement, Placement
from scheduler.problem import WHOLE_DEVICE, Isolation, Job, Node, NodePower, PowerBudget, Problem, Shape
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, problem, shape
from tests.scheduler.test_packing import share, without_devices
from tests.strategies import stagings

Rank = tuple[tuple[int, ...], float]


def every_placement(of: Problem, one: Job) -> Iterator[Placement]:
    """Wherever the job could be, were it alone."""
    for index in stakes(of)[one.id].shapes if one.id in stakes(of) else ():
        asked = one.shapes[index]
        for nodes in combinations(of.nodes, asked.members):
            for chosen in product(*(list(combinations(_able(machine, asked), asked.devices)) for machine in nodes)):
                members = tuple(
                    MemberPlacement(node=machine.id, devices=devices)
                    for machine, devices in zip(nodes, chosen, strict=True)
                )
                yield Placement(job=one.id, shape=index, members=members)


def _able(machine: Node, asked: Shape) -> list[str]:
    return [
        device.id
        for device in machine.devices
        if device.kind == asked.kind
        and (asked.share == WHOLE_DEVICE or device.isolation >= asked.isolation)
        and device.free >= asked.share
    ]


def holds(of: Problem, placements: Sequence[Placement]) -> bool:
    """Whether no node and no device gives more than it has."""
    shapes = {one.id: one.shapes for one in of.jobs}
    for machine in of.nodes:
        there = [
            (shapes[placed.job][placed.shape], member.devices)
            for placed in placements
            for member in placed.members
            if member.node == machine.id
        ]
        if there and not (machine.open and (machine.on or machine.can_switch)):
            return False
        if any(asked.in_container and machine.container_fault for asked, _ in there):
            return False
        if sum(asked.millicores for asked, _ in there) > machine.free_millicores:
            return False
        if sum(asked.memory_bytes for asked, _ in there) > machine.free_memory_bytes:
            return False
        for device in machine.devices:
            if sum(asked.share for asked, devices in there if device.id in devices) > device.free:
                return False
    return True


def within(of: Problem, placements: Sequence[Placement]) -> bool:
    """Whether no budget is passed, but by what was there before."""
    shapes = {one.id: one.shapes for one in of.jobs}
    for budget in of.budgets:
        group = [machine for machine in of.nodes if machine.id in budget.nodes]
        before_w = sum(_draw_w(machine, [], shapes) for machine in group)
        if sum(_draw_w(machine, placements, shapes) for machine in group) > max(budget.watts, before_w):
            return False
    return True


def _draw_w(machine: Node, placements: Sequence[Placement], shapes: dict[str, tuple[Shape, ...]]) -> float:
    """The most the node draws from now on: all its sockets with it, and a device once, whoever shares it."""
    devices: dict[str, float] = {}
    used = False
    for placed in placements:
        for member in placed.members:
            used |= member.node == machine.id
            for device in member.devices:
                devices[device] = max(devices.get(device, 0.0), shapes[placed.job][placed.shape].active_w)
    if not machine.on and not used:
        return machine.power.off_w
    draw_w = machine.power.base_w + sum(devices.get(d.id, 0.0) for d in machine.devices if d.free == WHOLE_DEVICE)
    if machine.power.socket_millicores:
        draw_w += machine.cpu_millicores // machine.power.socket_millicores * machine.power.socket_w
    boots = not machine.on and machine.power.boot_s > 0
    return max(draw_w, machine.power.boot_j / machine.power.boot_s) if boots else draw_w


def best(of: Problem, jobs: Sequence[Job], placements: list[Placement]) -> Rank:
    """Tries every plan."""
    if not jobs:
        return waiting(of, placements), evaluate(of, placements).total_j
    found = best(of, jobs[1:], placements)
    for placement in every_placement(of, jobs[0]):
        if holds(of, [*placements, placement]) and within(of, [*placements, placement]):
            found = min(found, best(of, jobs[1:], [*placements, placement]))
    return found


QUIET = NodePower(base_w=100.0)
SOCKETS = NodePower(base_w=100.0, off_w=5.0, boot_s=30.0, boot_j=9_000.0, socket_w=70.0, socket_millicores=4_000)
parts = st.sampled_from((250, 400, 600))
cores = st.sampled_from((1, 3, 5))
hours = st.sampled_from((HOUR, 3 * HOUR))
levels = st.sampled_from((Isolation.NONE, Isolation.MEMORY))
draws = st.sampled_from((100.0, 300.0))
kinds = st.sampled_from(("h100", "t4"))
shapes = st.one_of(
    st.builds(
        lambda part, level, kind, cpus, run_s, watts: share(
            part, isolation=level, kind=kind, cores=cpus, run_s=run_s, active_w=watts
        ),
        *(parts, levels, kinds, cores, hours, draws),
    ),
    st.builds(
        lambda members, kind, cpus, run_s: shape(1, members=members, kind=kind, cores=cpus, run_s=run_s),
        *(st.integers(1, 2), kinds, cores, hours),
    ),
    st.builds(without_devices, cores, st.sampled_from((1, 3))),
)


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Two nodes and three jobs, one of which has no device or a share of one."""
    nodes: list[Node] = []
    for name in "ab":
        switchable = draw(st.booleans())
        on = draw(st.booleans()) or not switchable
        made = node(
            name,
            cores=draw(st.sampled_from((4, 8))),
            memory=4,
            power=draw(st.sampled_from((QUIET, SOCKETS))),
            on=on,
            can_switch=switchable,
            h100=draw(st.integers(0, 2)),
            t4=draw(st.integers(0, 2)),
        )
        level, left = draw(levels), draw(st.sampled_from((WHOLE_DEVICE, 700)))
        devices = [replace(device, isolation=level) for device in made.devices]
        if devices and on:
            devices[0] = replace(devices[0], free=left)
        nodes.append(replace(made, devices=tuple(devices)))
    jobs = [
        job(f"j{number}", *draw(st.lists(shapes, min_size=1, max_size=2)), priority=draw(st.sampled_from((0, 5))))
        for number in range(2)
    ]
    made = problem(
        nodes, [*jobs, job("j2", share(draw(parts), kind=draw(kinds)), wait_w=draw(st.sampled_from((0.0, 90.0))))]
    )
    made = replace(made, jobs=tuple(replace(one, **draw(stagings(["a", "b"]))) for one in made.jobs))
    names = draw(st.sampled_from(("", "", "a", "ab")))
    watts = draw(st.sampled_from((150.0, 250.0, 400.0, 550.0, 800.0)))
    return replace(made, budgets=(PowerBudget(name="cap", watts=watts, nodes=tuple(names)),) if names else ())


@given(small())
@settings(max_examples=80, deadline=None)
def test_the_best_plan_of_a_small_problem_is_found_and_proven(of: Problem) -> None:
    plan = solve(of)
    waits, cost_j = best(of, of.jobs, [])
    assert verify(of, plan) == []
    assert waiting(of, plan.placements) == waits
    assert plan.objective_j == pytest.approx(cost_j, rel=1e-6, abs=1.0)
    assert plan.bound_j <= cost_j + 1.0
    assert plan.status == "optimal"
    assert plan.bound_j == pytest.approx(cost_j, rel=1e-5, abs=1.0)


def test_of_jobs_that_are_alike_the_first_in_line_starts() -> None:
    of = problem([node("a", h100=1)], [job(f"j{number}", share(600)) for number in (3, 1, 2)])
    plan = solve(of)
    assert [placed.job for placed in plan.placements] == ["j1"]


def test_a_gang_and_shares_that_arrive_together_find_room_together() -> None:
    """One by one the share, which is first in line, could stand in the gang's way."""
    nodes = [node("a", h100=2, cores=4), node("b", h100=2, cores=4), node("c", h100=1, cores=1)]
    jobs = [job("j1", share(500, cores=1)), job("j2", shape(2, members=2, cores=4))]
    assert sorted(placed.job for placed in solve(problem(nodes, jobs)).placements) == ["j1", "j2"]


def test_what_is_too_large_for_it_is_packed_all_the_same() -> None:
    nodes = [node(f"n{number:02d}", h100=8) for number in range(20)]
    plan = solve(problem(nodes, [job(f"j{number}", share(500)) for number in range(40)]))
    assert (plan.method, plan.status, len(plan.placements)) == ("packed", "feasible", 40)
