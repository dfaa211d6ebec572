"""Moving jobs together so that nodes go off: what is saved is worked out here a second time, by the definition."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.consolidate import LEAST_GAIN, consolidate
from scheduler.plan import Placement, PowerStep
from scheduler.problem import Hold, Job, Node, NodePower, Problem, Reservation, Running
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, placement, problem, shape, switchable

POWER = NodePower(base_w=1000.0, boot_s=300.0, boot_j=360_000.0)
KINDS = ("h100", "t4")


def machine(name: str, **options: object) -> Node:
    return switchable(node(name, power=POWER, **(options or {"h100": 4})))  # pyright: ignore[reportArgumentType]


def running(one: Job, *devices: str, left: int = 0, may_move: bool = True, move_j: float = 0.0) -> Running:
    """A job that holds devices of one node, in its shape `left`."""
    hold = Hold(node=devices[0].split("-")[0], devices=devices)
    return Running(job=one, shape=left, members=(hold,), may_move=may_move, move_j=move_j)


def cluster(nodes: Sequence[Node], *those: Running, moves: int = 9, fill: float = 0.0) -> Problem:
    """The problem in which these jobs run on the nodes."""
    held = {device: one for one in those for hold in one.members for device in hold.devices}
    now: list[Node] = []
    for one in nodes:
        here = {other.job.id: other for name, other in held.items() if name.startswith(f"{one.id}-")}
        shapes = [other.job.shapes[other.shape] for other in here.values()]
        now.append(
            replace(
                one,
                devices=tuple(replace(device, free=0) if device.id in held else device for device in one.devices),
                free_millicores=one.free_millicores - sum(each.millicores for each in shapes),
                free_memory_bytes=one.free_memory_bytes - sum(each.memory_bytes for each in shapes),
                busy_s=max((each.run_s for each in shapes), default=0.0),
            )
        )
    return replace(problem(now, []), running=those, moves=moves, fill=fill)


def takes_j(of: Problem, places: Sequence[tuple[Job, int, str]]) -> float:
    """What is still to be drawn for jobs in these shapes on these nodes, by the objective's definition, in J."""
    ends: dict[str, float] = {}
    joules = 0.0
    for one, number, name in places:
        run_s = one.shapes[number].run_s
        ends[name] = max(ends.get(name, 0.0), run_s)
        shared_w = of.fill * POWER.base_w / len(next(each for each in of.nodes if each.id == name).devices)
        joules += one.shapes[number].size * (one.shapes[number].active_w + shared_w) * run_s
    return joules + sum((1 - of.fill) * POWER.base_w * min(of.horizon_s, end_s) for end_s in ends.values())


def stands(of: Problem, moves: Sequence[Placement] = ()) -> list[tuple[Job, int, str]]:
    moved = {move.job: (move.shape, move.members[0].node) for move in moves}
    return [(one.job, *moved.get(one.job.id, (one.shape, one.members[0].node))) for one in of.running]


def where(moves: Sequence[Placement]) -> dict[str, str]:
    return {move.job: move.members[0].node for move in moves}


A1, B1 = running(job("j1"), "a-h100-0"), running(job("j2"), "b-h100-0")
TWO = cluster([machine("a"), machine("b")], A1, B1)


def test_of_two_nodes_that_one_would_do_for_one_is_emptied() -> None:
    plan = solve(TWO)
    assert where(plan.moves) == {"j1": "b"}
    assert verify(TWO, plan) == []
    # Only what is empty before anything moves is switched off by this plan; the other goes in a later one.
    assert plan.power_steps == ()


@pytest.mark.parametrize(("move_j", "moved"), [(1000.0 * HOUR / LEAST_GAIN - 1, True), (1000.0 * HOUR, False)])
def test_a_move_must_save_what_it_costs_several_times_over(move_j: float, moved: bool) -> None:
    of = replace(TWO, running=tuple(replace(one, move_j=move_j) for one in TWO.running))
    assert bool(solve(of).moves) is moved


def test_a_node_is_emptied_as_a_whole_or_not_at_all() -> None:
    ten = job("j9", shape(3, run_s=10 * HOUR))
    pair = [running(job(f"j{number}"), f"a-h100-{number}") for number in (1, 2)]
    of = cluster([machine("a"), machine("b", h100=5)], *pair, running(ten, "b-h100-0", "b-h100-1", "b-h100-2"))
    assert where(solve(of).moves) == {"j1": "b", "j2": "b"}
    assert solve(replace(of, moves=1)).moves == ()
    stays = replace(of, running=(replace(of.running[0], may_move=False), *of.running[1:]))
    assert solve(stays).moves == ()
    narrow = cluster([machine("a"), machine("b")], *pair, running(ten, "b-h100-0", "b-h100-1", "b-h100-2"))
    assert solve(narrow).moves == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"open": False},
        {"on": False, "busy_s": 0.0},
        {"booting": True},
        {"free_millicores": 0},
        {"free_memory_bytes": 0},
    ],
    ids=str,
)
def test_nothing_moves_to_a_node_that_cannot_take_it_at_once(changed: dict[str, object]) -> None:
    fixed = running(job("j2", shape(run_s=9 * HOUR)), "b-h100-0", may_move=False)
    of = cluster([machine("a"), machine("b")], A1, fixed)
    assert where(solve(of).moves) == {"j1": "b"}
    of = replace(of, nodes=(of.nodes[0], replace(of.nodes[1], **changed)))  # pyright: ignore[reportArgumentType]
    assert solve(of).moves == ()


def test_nothing_moves_to_nodes_that_are_kept_for_another() -> None:
    first = job("j9", shape(4))
    of = replace(TWO, jobs=(first,), reservation=Reservation(job="j9", nodes=("a", "b"), free_s=HOUR))
    assert solve(of).moves == ()
    assert solve(replace(of, reservation=replace(of.reservation, nodes=("a",)))).moves != ()  # pyright: ignore


def test_a_job_moves_to_a_thriftier_kind_and_never_to_where_it_would_run_longer() -> None:
    slow = job("j1", shape(kind="h100"), shape(kind="t4", active_w=60.0, run_s=HOUR + 1))
    of = cluster([machine("a"), machine("c", t4=2)], running(slow, "a-h100-0"))
    assert solve(of).moves == ()
    quick = job("j1", shape(kind="h100"), shape(kind="t4", active_w=60.0))
    of = cluster([machine("a"), machine("c", t4=2)], running(quick, "a-h100-0"))
    assert where(solve(of).moves) == {"j1": "c"}
    (move,) = solve(of).moves
    capped = job("j1", *quick.shapes, replace(quick.shapes[1], cap_w=60.0, active_w=50.0))
    (same,) = consolidate(cluster([machine("a"), machine("c", t4=2)], running(capped, "a-h100-0")), ())
    assert same == move, "what moves goes on without a power cap"


def test_the_checker_finds_a_move_to_a_node_that_goes_off_or_is_off() -> None:
    of = cluster([machine("a"), machine("b")], A1)
    move = placement("j1", ("b", ["b-h100-0"]))
    plan = replace(solve(of), moves=(move,))
    assert {one.code for one in verify(of, plan)} == {"step_off_busy"}
    off = replace(of, nodes=(of.nodes[0], replace(of.nodes[1], on=False)))
    step = (PowerStep(node="b", on=True, saves_j=0.0),)
    assert {one.code for one in verify(off, replace(plan, power_steps=()))} == {"moved_to_off"}
    assert "step_idle_boot" in {one.code for one in verify(off, replace(plan, power_steps=step))}


@st.composite
def clusters(draw: st.DrawFn) -> Problem:
    """Up to four nodes of one kind each, with jobs of one member that run on them."""
    nodes = [machine(f"n{number}", **{draw(st.sampled_from(KINDS)): 4}) for number in range(draw(st.integers(1, 4)))]
    free = {one.id: [device.id for device in one.devices] for one in nodes}
    those: list[Running] = []
    for number in range(draw(st.integers(1, 6))):
        home = draw(st.sampled_from(nodes))
        size = draw(st.sampled_from((1, 1, 2, 4)))
        if len(free[home.id]) < size:
            continue
        shapes = [
            shape(size, kind=kind, run_s=draw(st.sampled_from((0.5, 1, 2, 20))) * HOUR, active_w=watts)
            for kind, watts in zip(KINDS, (400.0, 60.0), strict=True)
        ]
        mine, free[home.id] = free[home.id][:size], free[home.id][size:]
        move_j = draw(st.sampled_from((0.0, 10_000.0, 1e6)))
        may_move = draw(st.sampled_from((True, True, False)))
        here = KINDS.index(home.devices[0].kind)
        those.append(running(job(f"j{number}", *shapes), *mine, left=here, may_move=may_move, move_j=move_j))
    return cluster(nodes, *those, moves=draw(st.integers(1, 6)), fill=draw(st.sampled_from((0.0, 0.6))))


def single_moves(of: Problem) -> Iterator[tuple[Running, int, str]]:
    """Every single move that may be made."""
    for one in of.running:
        for number, each in enumerate(one.job.shapes):
            for place in of.nodes:
                fits = sum(device.kind == each.kind and device.free > 0 for device in place.devices) >= each.devices
                longer = each.run_s > one.job.shapes[one.shape].run_s
                if one.may_move and fits and not longer and place.id != one.members[0].node:
                    yield one, number, place.id


@settings(max_examples=150)
@given(clusters())
def test_moves_save_what_they_must_and_the_only_one_is_the_best(of: Problem) -> None:
    before_j = takes_j(of, stands(of))
    plan = solve(of)
    assert verify(of, plan) == []
    costs = {one.job.id: LEAST_GAIN * one.move_j for one in of.running}
    saved_j = before_j - takes_j(of, stands(of, plan.moves)) - sum(costs[move.job] for move in plan.moves)
    assert saved_j > 0 if plan.moves else saved_j == 0
    best_j = 0.0
    for one, number, place in single_moves(of):
        others = [other for other in stands(of) if other[0].id != one.job.id]
        after_j = takes_j(of, [*others, (one.job, number, place)])
        best_j = max(best_j, before_j - after_j - costs[one.job.id])
    (*alone,) = consolidate(replace(of, moves=1), ())
    got_j = before_j - takes_j(of, stands(of, alone)) - sum(costs[move.job] for move in alone)
    assert got_j == pytest.approx(best_j, abs=1.0)
