"""A job that was overtaken for long enough comes first, and nodes are kept for it."""

from dataclasses import replace

import pytest

from scheduler.plan import Plan
from scheduler.problem import Hold, Job, Node, Problem, Reservation, Running, Shape
from scheduler.reserve import reserve
from scheduler.solve import solve, solve_greedily
from scheduler.verify import verify
from tests.builders import HOUR, job, node, placement, problem, shape, switchable


def running(name: str, where: str, *devices: str, run_s: float) -> Running:
    return Running(
        job=job(name, shape(len(devices), cores=4, run_s=run_s)),
        shape=0,
        members=(Hold(node=where, devices=devices),),
    )


def kept(nodes: list[Node], first: Job, *runs: Running) -> Reservation | None:
    return reserve(replace(problem(nodes, [first]), running=runs), first)


def placed(plan: Plan) -> set[str]:
    return {each.job for each in plan.placements}


def test_nodes_that_have_room_soonest_are_kept_until_the_last_of_them_has() -> None:
    nodes = [node("a", h100=4, busy=4, busy_s=9_000), node("b", h100=4, busy=2, busy_s=5_000), node("c", h100=4)]
    runs = [
        running("r1", "a", "a-h100-0", "a-h100-1", run_s=2_000.0),
        running("r2", "a", "a-h100-2", "a-h100-3", run_s=9_000.0),
        running("r3", "b", "b-h100-0", "b-h100-1", run_s=5_000.0),
    ]
    assert kept(nodes, job("j1", shape(2, members=3)), *runs) == Reservation(
        job="j1", nodes=("a", "b", "c"), free_s=2_000.0
    )
    assert kept(nodes, job("j1", shape(4, members=2)), *runs) == Reservation(job="j1", nodes=("b", "c"), free_s=5_000.0)


def test_what_is_not_told_of_goes_with_the_node() -> None:
    nodes = [node("a", h100=4, busy=4, busy_s=7_000), node("b", h100=4, busy=4, busy_s=6_000)]
    assert kept(nodes, job("j1", shape(1))) == Reservation(job="j1", nodes=("b",), free_s=6_000.0)


def test_the_shape_that_starts_first_counts() -> None:
    nodes = [node("a", h100=2, busy=2, busy_s=7_000), node("b", a100=2, busy=2, busy_s=600)]
    assert kept(nodes, job("j1", shape(2), shape(2, kind="a100"))) == Reservation(job="j1", nodes=("b",), free_s=600.0)


def test_who_can_start_now_is_only_the_first() -> None:
    assert kept([switchable(node("a", h100=2), on=False)], job("j1", shape(2))) == Reservation(job="j1")


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([node("a", h100=2, is_open=False)], shape(2)),
        ([node("a", h100=2, container_fault="no podman")], shape(2, in_container=True)),
        ([node("a", h100=2)], shape(3)),
    ],
)
def test_nothing_is_kept_for_a_job_that_the_open_nodes_could_not_carry(nodes: list[Node], wanted: Shape) -> None:
    assert kept(nodes, job("j1", wanted)) is None


def blocked(*others: Job) -> Problem:
    """A gang of two nodes of which one is taken for 2,000 s, and others behind it in line."""
    nodes = [node("a", h100=4, busy=4, busy_s=2_000), node("b", h100=4)]
    gang = job("gang-1", shape(4, members=2))
    asked = problem(nodes, [gang, *others])
    return replace(asked, reservation=reserve(asked, gang))


def test_nobody_behind_it_takes_what_is_kept_unless_it_ends_in_time() -> None:
    asked = blocked(job("long-2", shape(1, run_s=HOUR)), job("short-3", shape(1, run_s=1_800.0)))
    for plan in (solve(asked), solve_greedily(asked)):
        assert placed(plan) == {"short-3"}
        assert {verdict.job: [reason.code for reason in verdict.reasons] for verdict in plan.verdicts} == {
            "gang-1": ["nodes_kept"],
            "long-2": ["kept_for_another"],
            "short-3": [],
        }
    assert placed(solve(replace(asked, reservation=None))) == {"long-2", "short-3"}


def test_a_higher_priority_goes_before_it() -> None:
    assert placed(solve(blocked(job("urgent-2", shape(1, run_s=HOUR), priority=1)))) == {"urgent-2"}


def test_it_starts_before_smaller_ones_that_would_fill_its_place_better() -> None:
    gang = job("gang-1", shape(3, members=2))
    small = [job(f"small-{number}", shape(4, members=2)) for number in (2, 3)]
    asked = problem([node("a", h100=4), node("b", h100=4)], [gang, *small])
    assert placed(solve(asked)) == {"small-2"}
    assert placed(solve(replace(asked, reservation=reserve(asked, gang)))) == {"gang-1"}


def test_a_plan_that_takes_what_is_kept_is_found() -> None:
    asked = blocked(job("long-2", shape(1, run_s=HOUR)))
    free = replace(asked, reservation=None)
    bad = solve(free)
    assert bad.placements == (placement("long-2", ("b", ["b-h100-0"])),)
    assert [violation.code for violation in verify(asked, bad)] == ["kept_node"]


@pytest.mark.parametrize(
    ("reservation", "complaint"),
    [
        (Reservation(job="j9"), "the reservation is for j9, which is no job of the problem"),
        (Reservation(job="j1", nodes=("z",)), "the reservation keeps z, no node of the problem"),
        (Reservation(job="j1", free_s=-1.0), "free_s of the reservation is -1.0"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused(reservation: Reservation, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        solve(replace(problem([node("a", h100=1)], [job("j1")]), reservation=reservation))
