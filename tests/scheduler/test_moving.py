"""Moving jobs that run: to save power, and to make room."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.moving import Mover
from scheduler.packing import Packer
from scheduler.plan import Placement
from scheduler.problem import Job, NodePower, Problem
from scheduler.solve import solve
from scheduler.verify import verify
from tests.builders import HOUR, job, node, placement, problem, shape
from tests.scheduler.test_packing import after, packings, without_devices

QUIET = NodePower(base_w=100.0)
T4, H100 = shape(1, kind="t4", active_w=60.0), shape(1, kind="h100", active_w=400.0)


def running(of: Problem, *jobs: tuple[Job, Placement], moves: int, move_j: float = 0.0) -> Problem:
    """The problem with these jobs running, and so many moves allowed."""
    now = after(of, list(jobs))
    return replace(now, moves=moves, running=tuple(replace(one, move_j=move_j) for one in now.running))


EITHER = job("j1", H100, T4)
ON_H100 = (EITHER, placement("j1", ("a", ["a-h100-0"])))
TWO = problem([node("a", h100=1, power=QUIET), node("b", t4=1, power=QUIET)], [])


@pytest.mark.parametrize(
    ("moves", "move_j", "moved"),
    [(1, 0.0, True), (0, 0.0, False), (1, 200.0 * HOUR, True), (1, 340.0 * HOUR, False)],
)
def test_a_job_moves_for_what_it_saves_and_only_if_that_pays(moves: int, move_j: float, moved: bool) -> None:
    of = replace(running(TWO, ON_H100, moves=moves, move_j=move_j), jobs=(job("j2", without_devices(1)),))
    plan = solve(of)
    assert [(move.job, move.members[0].node) for move in plan.moves] == ([("j1", "b")] if moved else [])
    assert verify(of, plan) == []


def test_what_a_move_costs_must_be_saved_in_the_time_that_the_job_goes_on() -> None:
    """The same joules are 200 W over the hour that it runs, and 400 W over half of it."""
    rest = (job("j1", *(replace(one, run_s=HOUR / 2) for one in EITHER.shapes)), ON_H100[1])
    assert solve(running(TWO, ON_H100, moves=1, move_j=200.0 * HOUR)).moves
    assert not solve(running(TWO, rest, moves=1, move_j=200.0 * HOUR)).moves


def test_a_job_that_may_not_move_stays() -> None:
    of = running(TWO, ON_H100, moves=1)
    plan = solve(of)
    fixed = replace(of, running=tuple(replace(one, may_move=False) for one in of.running))
    assert solve(fixed).moves == ()
    assert {found.code for found in verify(fixed, plan)} == {"may_not_move"}


def test_where_no_move_is_worth_it_the_plan_is_the_exact_one() -> None:
    waiting = replace(running(TWO, ON_H100, moves=0), jobs=(job("j2", H100, T4),))
    fixed = replace(waiting, moves=1, running=tuple(replace(one, may_move=False) for one in waiting.running))
    assert solve(waiting).status == "optimal"
    assert solve(fixed) == solve(waiting)


SMALL = job("j1", shape(1))
WIDE = job("j9", shape(2))


def scattered(moves: int) -> Problem:
    """Two nodes, each with a small job on one of its two devices, and one that wants both devices of a node."""
    of = problem([node("a", h100=2, power=QUIET), node("b", h100=2, power=QUIET)], [])
    held = [(replace(SMALL, id=f"j{name}"), placement(f"j{name}", (name, [f"{name}-h100-0"]))) for name in "ab"]
    return replace(running(of, *held, moves=moves), jobs=(WIDE,))


def test_a_small_job_makes_room_for_a_wide_one() -> None:
    of = scattered(moves=1)
    plan = solve(of)
    assert [placed.job for placed in plan.placements] == ["j9"]
    assert len(plan.moves) == 1
    assert verify(of, plan) == []
    assert solve(scattered(moves=0)).placements == ()


@pytest.mark.parametrize("fixed", ["ja", "jb"])
def test_room_is_made_on_whichever_of_alike_nodes_has_who_may_move(fixed: str) -> None:
    of = scattered(moves=1)
    of = replace(of, running=tuple(replace(one, may_move=one.job.id != fixed) for one in of.running))
    plan = solve(of)
    assert [placed.job for placed in plan.placements] == ["j9"]
    assert [move.job for move in plan.moves] == [{"ja": "jb", "jb": "ja"}[fixed]]


def test_too_many_moves_and_moves_of_strangers_are_found() -> None:
    of = scattered(moves=1)
    plan = solve(of)
    assert {found.code for found in verify(replace(of, moves=0), plan)} == {"moves_exceeded"}
    stranger = replace(plan, moves=(replace(plan.moves[0], job="jx"),))
    assert {found.code for found in verify(of, stranger)} >= {"unknown_job"}
    there = replace(plan, moves=(replace(plan.moves[0], members=plan.placements[0].members[:1]),))
    assert "device_count" in {found.code for found in verify(of, there)}


@given(packings(), st.data())
@settings(max_examples=25, deadline=None)
def test_what_was_moved_is_as_good_as_read_afresh(of: Problem, data: st.DataObject) -> None:
    packer = Packer(of)
    mover = Mover(packer)
    where: dict[str, tuple[Job, Placement]] = {}
    for one in of.jobs:
        placed, moved = packer.start(one), list[Placement]()
        if placed is None and (room := mover.make_room(one, data.draw(st.integers(0, 3)))) is not None:
            moved, placed = room
        if placed is not None:
            where[one.id] = (one, placed)
        allowed = data.draw(st.integers(0, 2))
        improved = mover.improve(allowed)
        assert len(improved) <= allowed
        for move in (*moved, *improved):
            where[move.job] = (where[move.job][0], move)
        # Booking it all again from nothing breaks no rule, and leads to the same fleet.
        now = after(of, list(where.values()))
        for machine in now.nodes:
            index = packer.fleet.names.index(machine.id)
            assert [device.free for device in machine.devices] == packer.fleet.free[index]
            assert (machine.free_millicores, machine.free_memory_bytes) == packer.fleet.free_host(index)
            assert min(machine.free_millicores, machine.free_memory_bytes, *packer.fleet.free[index]) >= 0


@given(packings(), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_plans_with_moves_pass_the_checker(of: Problem, moves: int) -> None:
    half = replace(of, jobs=of.jobs[::2])
    jobs = {one.id: one for one in half.jobs}
    held = [(jobs[placed.job], placed) for placed in solve(half).placements]
    now = replace(after(of, held), jobs=of.jobs[1::2], moves=moves)
    plan = solve(now)
    assert verify(now, plan) == []
    assert len(plan.moves) <= moves


def test_moves_that_lead_nowhere_are_taken_back() -> None:
    """Each of the two jobs on node a would find room on b, but not both."""
    of = problem([node("a", h100=2, power=QUIET), node("b", h100=2, power=QUIET)], [])
    places = {"j1": ("a", ["a-h100-0"]), "j2": ("a", ["a-h100-1"]), "j3": ("b", ["b-h100-0"])}
    held = [(replace(SMALL, id=name), placement(name, place)) for name, place in places.items()]
    packer = Packer(running(of, *held, moves=2))
    residents, free = dict(packer.residents), [list(left) for left in packer.fleet.free]
    assert Mover(packer).make_room(WIDE, 2) is None
    assert packer.residents == residents
    assert packer.fleet.free == free


@given(packings())
@settings(max_examples=15, deadline=None)
def test_what_leaving_would_save_is_what_it_saves(of: Problem) -> None:
    packer = Packer(of)
    for one in of.jobs:
        packer.start(one)
    fleet = packer.fleet
    for resident in list(packer.residents.values()):
        _, (fragments,), (room,) = fleet.saved([(resident.node, resident.demand, resident.taken)])
        before = int(fleet.fragments[fleet.row_of[resident.node]]), fleet.room_left.copy()
        packer.stop(resident.job, packer.placement_of(resident))
        assert before[0] - int(fleet.fragments[fleet.row_of[resident.node]]) == fragments
        assert (fleet.room_left - before[1]).tolist() == room.tolist()
        packer.put_back(resident)
